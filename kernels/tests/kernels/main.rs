//! Every kernel's own text, run on the CPU, against naive scalar oracles over random shapes.
#![cfg_attr(
    not(host_build),
    allow(unused, reason = "nothing to run without the host build")
)]

#[cfg(all(test, host_build))]
mod copies;
#[cfg(all(test, host_build))]
mod device;
#[cfg(all(test, host_build))]
mod expert;
#[cfg(all(test, host_build))]
mod gate;
#[cfg(all(test, host_build))]
mod host_build;
#[cfg(all(test, host_build))]
mod slots;
#[cfg(all(test, host_build))]
mod tokens;

#[test]
fn host_build_is_there() {
    if !moeplan_kernels::HOST_BUILD {
        println!("SKIPPED: no C++ compiler, so no kernel was run on the CPU");
    }
}
