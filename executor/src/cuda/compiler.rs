//! NVRTC: a module's text to PTX, once a machine.
#![allow(unsafe_code, reason = "NVRTC is a foreign library")]

use crate::ExecError;
use cudarc::nvrtc::{result, sys};
use moeplan_kernels::{Module, Real, include_folder, nvrtc_options};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

/// Compiles, and keeps what it compiled in a folder if it has one.
#[derive(Debug)]
pub(super) struct Compiler {
    cache: Option<PathBuf>,
    include: Option<PathBuf>,
    version: (i32, i32),
    /// What this process compiled, for GPUs that are alike.
    compiled: BTreeMap<u64, String>,
}

impl Compiler {
    /// NVRTC must have been found.
    pub(super) fn new(cache: Option<PathBuf>) -> Compiler {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two out-parameters; the library is present.
        let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        Compiler {
            cache,
            include: include_folder(),
            version: (major, minor),
            compiled: BTreeMap::new(),
        }
    }

    /// PTX of a module for a compute capability such as `80`.
    pub(super) fn ptx(
        &mut self,
        module: Module,
        real: Real,
        arch: &str,
    ) -> Result<String, ExecError> {
        let include = match (real, &self.include) {
            (Real::F32, _) => None,
            (_, Some(include)) => Some(include.as_path()),
            (_, None) => {
                let what = "cuda_fp16.h was not found: set CUDA_HOME to a CUDA toolkit";
                return Err(ExecError::Missing(what.into()));
            }
        };
        let options = nvrtc_options(arch, real, include);
        let key = fingerprint(module.source(), &options, self.version);
        if let Some(ptx) = self.compiled.get(&key) {
            return Ok(ptx.clone());
        }
        let cached = self.cache.as_ref().map(|folder| {
            folder.join(format!(
                "{}-{}-{key:016x}.ptx",
                module.file(),
                real.suffix()
            ))
        });
        if let Some(ptx) = cached
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok())
        {
            return Ok(ptx);
        }
        let ptx = compile(module, &options)?;
        self.compiled.insert(key, ptx.clone());
        if let Some(path) = cached {
            // A cache that cannot be written costs time only.
            let _ = store(&path, &ptx);
        }
        Ok(ptx)
    }
}

/// FNV-1a over text, options and version: stable from build to build, as a file name has to be.
fn fingerprint(source: &str, options: &[String], version: (i32, i32)) -> u64 {
    let version = format!("{}.{}", version.0, version.1);
    let parts = [source, &version]
        .into_iter()
        .chain(options.iter().map(String::as_str));
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash
}

/// Written aside and renamed, so that no other process reads half of it.
fn store(path: &Path, ptx: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&aside, ptx)?;
    std::fs::rename(&aside, path)
}

fn compile(module: Module, options: &[String]) -> Result<String, ExecError> {
    let failed =
        |log: String| ExecError::Device(format!("{} does not compile:\n{log}", module.file()));
    let source = CString::new(module.source()).map_err(|error| failed(error.to_string()))?;
    let program =
        result::create_program(&source, None).map_err(|error| failed(format!("{error:?}")))?;
    // SAFETY: the program is alive until it is destroyed; texts are C strings of NVRTC.
    unsafe {
        let compiled = result::compile_program(program, options);
        let text = match compiled {
            Ok(()) => result::get_ptx(program),
            Err(_) => result::get_program_log(program),
        };
        let text = text.map(|text| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned());
        let _ = result::destroy_program(program);
        match (compiled, text) {
            (Ok(()), Ok(ptx)) => Ok(ptx),
            (Err(_), Ok(log)) => Err(failed(log)),
            (_, Err(error)) => Err(failed(format!("{error:?}"))),
        }
    }
}
