//! Every kernel compiles for sm_80 and sm_90 by NVRTC and ptxas, without spills, with the resources
//! recorded in `resources.csv`, and with the parameters that the Rust arguments state.
//!
//! `.ci/nvrtc.sh` fetches both under target/nvrtc. `UPDATE_RESOURCES=1 cargo test -p moeplan-kernels --test
//! nvrtc` rewrites the table.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "NVRTC is a foreign library")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, whose helpers clippy does not know as such"
)]

use cudarc::nvrtc::result;
use moeplan_kernels::{KernelId, Module, Real, nvrtc_options, signature};
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHITECTURES: [&str; 2] = ["80", "90"];
const HEADER: &str = "kernel,arch,registers,spill_bytes,stack_bytes,static_shared_bytes,barriers";

/// target/nvrtc beside target/debug/deps, where this test runs from.
fn wheels() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let wheels = target.join("nvrtc/nvidia");
    wheels.is_dir().then_some(wheels)
}

/// Opens a library for good, so that a later request for its name finds it.
fn preload(path: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries run nothing but their own initialisers.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
    std::mem::forget(library);
}

/// PTX of a module, or the compiler's log.
fn compile(module: Module, real: Real, arch: &str, include: &Path) -> Result<String, String> {
    let source = CString::new(module.source()).unwrap();
    let program = result::create_program(&source, None).map_err(|error| format!("{error:?}"))?;
    let options = nvrtc_options(arch, real, Some(include));
    // SAFETY: `program` is alive until destroyed below; the strings are C strings.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).unwrap();
        let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
        if compiled.is_err() || !log.trim().is_empty() {
            return Err(log); // warnings are errors too
        }
        let ptx = result::get_ptx(program).unwrap();
        let text = CStr::from_ptr(ptx.as_ptr()).to_string_lossy().into_owned();
        result::destroy_program(program).unwrap();
        Ok(text)
    }
}

/// Kinds of the parameters of `entry`: 8 or 4 bytes, which is what PTX tells of them.
fn parameters(ptx: &str, entry: &str) -> String {
    let start = ptx
        .find(&format!(".entry {entry}("))
        .unwrap_or_else(|| panic!("{entry} is not in the PTX"));
    let list = ptx[start..].split(')').next().unwrap();
    list.matches(".param .")
        .zip(list.split(".param .").skip(1))
        .map(|(_, kind)| {
            if kind.starts_with("u64") || kind.starts_with("b64") {
                '8'
            } else {
                '4'
            }
        })
        .collect()
}

/// The first number before `word` in `text`.
fn number_before(text: &str, word: &str) -> u32 {
    let Some(at) = text.find(word) else { return 0 };
    let digits = text[..at]
        .trim_end()
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap();
    digits.parse().unwrap()
}

/// Rows of the table for all kernels of a module, from `ptxas -v`.
fn resources(
    ptxas: &Path,
    ptx: &str,
    module: Module,
    real: Real,
    arch: &str,
) -> Vec<(String, u32)> {
    let dir = std::env::temp_dir().join(format!("moeplan-ptxas-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{}-{}-{arch}.ptx", module.file(), real.suffix()));
    std::fs::write(&path, ptx).unwrap();
    let output = Command::new(ptxas)
        .args(["-v", &format!("-arch=sm_{arch}"), "-o"])
        .arg(path.with_extension("cubin"))
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let of_entry = |&kernel: &KernelId| {
        let entry = kernel.entry(real);
        let marker = format!("Compiling entry function '{entry}'");
        let part = text
            .split(&marker)
            .nth(1)
            .unwrap_or_else(|| panic!("no {entry} in {text}"));
        let part = part.split("Compiling entry function").next().unwrap();
        let spills =
            number_before(part, "bytes spill stores") + number_before(part, "bytes spill loads");
        let row = format!(
            "{entry},sm_{arch},{},{spills},{},{},{}",
            number_before(part, "registers"),
            number_before(part, "bytes stack frame"),
            number_before(part, "bytes smem"),
            number_before(part, "barriers"),
        );
        (row, spills)
    };
    let rows = module.kernels().iter().map(of_entry).collect();
    std::fs::remove_file(path.with_extension("cubin")).unwrap();
    std::fs::remove_file(&path).unwrap();
    rows
}

#[test]
fn every_kernel_compiles_without_spills_and_as_recorded() {
    let Some(wheels) = wheels() else {
        println!(
            "SKIPPED: no target/nvrtc (see .ci/nvrtc.sh), so no kernel was compiled for a GPU"
        );
        return;
    };
    preload(&wheels.join("cuda_nvrtc/lib/libnvrtc-builtins.so.12.9"));
    preload(&wheels.join("cuda_nvrtc/lib/libnvrtc.so.12"));
    let (ptxas, include) = (
        wheels.join("cuda_nvcc/bin/ptxas"),
        wheels.join("cuda_runtime/include"),
    );
    let mut table = format!("{HEADER}\n");
    let mut spilling = Vec::new();
    for &module in Module::ALL {
        for &real in module.reals() {
            for arch in ARCHITECTURES {
                let ptx = compile(module, real, arch, &include).unwrap_or_else(|log| {
                    panic!("{} for {}:\n{log}", module.file(), real.suffix())
                });
                for &kernel in module.kernels() {
                    let stated = signature(kernel).replace(['p', 'l'], "8").replace('i', "4");
                    let entry = kernel.entry(real);
                    assert_eq!(parameters(&ptx, entry), stated, "parameters of {entry}");
                }
                for (row, spills) in resources(&ptxas, &ptx, module, real, arch) {
                    let _ = writeln!(table, "{row}");
                    if spills > 0 {
                        spilling.push(row);
                    }
                }
            }
        }
    }
    assert!(spilling.is_empty(), "spills:\n{}", spilling.join("\n"));
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("resources.csv");
    if std::env::var_os("UPDATE_RESOURCES").is_some() {
        std::fs::write(&recorded, &table).unwrap();
        return;
    }
    let recorded = std::fs::read_to_string(recorded).unwrap_or_default();
    for (ours, theirs) in table.lines().zip(recorded.lines()) {
        assert_eq!(
            ours, theirs,
            "resources changed: UPDATE_RESOURCES=1 records them"
        );
    }
    assert_eq!(
        table.lines().count(),
        recorded.lines().count(),
        "kernels were added or removed"
    );
}

#[test]
fn an_error_names_our_file_and_line() {
    let Some(wheels) = wheels() else { return };
    preload(&wheels.join("cuda_nvrtc/lib/libnvrtc-builtins.so.12.9"));
    preload(&wheels.join("cuda_nvrtc/lib/libnvrtc.so.12"));
    // fp16 without its header's folder.
    let log = compile(Module::Encode, Real::F16, "80", Path::new("/nonexistent")).unwrap_err();
    assert!(
        log.contains("common.cuh") && log.contains("cuda_fp16.h"),
        "{log}"
    );
}
