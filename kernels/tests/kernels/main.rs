//! Every kernel's own text, run on the CPU or (see `memory`) on a GPU, against naive scalar oracles over random shapes.
#![cfg_attr(
    not(host_build),
    allow(unused, reason = "nothing to run without the host build")
)]

#[cfg(test)]
#[cfg(host_build)]
mod copies;
#[cfg(test)]
#[cfg(host_build)]
mod device;
#[cfg(test)]
#[cfg(host_build)]
mod expert;
#[cfg(test)]
#[cfg(host_build)]
mod gate;
#[cfg(test)]
#[cfg(host_build)]
mod gpu;
#[cfg(test)]
#[cfg(host_build)]
mod host_build;
#[cfg(test)]
#[cfg(host_build)]
mod memory;
#[cfg(test)]
#[cfg(host_build)]
mod normalize;
#[cfg(test)]
#[cfg(host_build)]
mod slots;
#[cfg(test)]
#[cfg(host_build)]
mod tokens;

#[test]
fn host_build_is_there() {
    if !moeplan_kernels::HOST_BUILD {
        println!("SKIPPED: no C++ compiler, so no kernel was run on the CPU");
    }
}
