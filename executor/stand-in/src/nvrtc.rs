//! The symbols of `libnvrtc.so`, for machines that do not have NVIDIA's: "compiles" a kernel's text to a
//! list of its entry points, which is all that the stand-in's modules need.

use crate::module::complain;
use moeplan_kernels::host;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Write as _;

const OK: c_int = 0;
const INVALID_INPUT: c_int = 3;
const COMPILATION: c_int = 6;

/// A program.
pub(crate) struct Program {
    source: String,
    ptx: CString,
    log: CString,
}

/// Entry points of `source` for the number type that `options` name.
fn entries(source: &str, options: &[String]) -> Vec<String> {
    let suffix = match options
        .iter()
        .find_map(|option| option.strip_prefix("-DMOE_DTYPE="))
    {
        Some("0") => "f32",
        Some("1") => "f16",
        Some("2") => "bf16",
        _ => return Vec::new(),
    };
    let of = |marker: &str, suffix: &str| -> Vec<String> {
        // The definition of the macro itself is followed by its parameter.
        let uses = source
            .split(marker)
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        uses.filter(|name| *name != "name")
            .map(|name| format!("{name}{suffix}"))
            .collect()
    };
    let mut all = of("REAL_KERNEL(", &format!("_{suffix}"));
    all.extend(of("PLAIN_KERNEL(", ""));
    all
}

fn parameters(entry: &str) -> Option<String> {
    let kinds = host::find(entry)?.parameters();
    let list = kinds.chars().enumerate().map(|(index, kind)| {
        let bits = if kind == 'i' { 32 } else { 64 };
        format!(".param .u{bits} {entry}_param_{index}")
    });
    Some(list.collect::<Vec<_>>().join(", "))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    // SAFETY: out-parameters of the caller.
    unsafe { (*major, *minor) = (12, 9) };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut *mut Program,
    source: *const c_char,
    _name: *const c_char,
    _headers: c_int,
    _texts: *const *const c_char,
    _names: *const *const c_char,
) -> c_int {
    // SAFETY: a C string and an out-parameter of the caller.
    unsafe {
        let source = CStr::from_ptr(source).to_string_lossy().into_owned();
        *program = Box::into_raw(Box::new(Program {
            source,
            ptx: CString::default(),
            log: CString::default(),
        }));
    }
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCompileProgram(
    program: *mut Program,
    count: c_int,
    options: *const *const c_char,
) -> c_int {
    // SAFETY: a program of `nvrtcCreateProgram` and `count` C strings.
    let (program, options) = unsafe {
        let text = |index| {
            CStr::from_ptr(*options.add(index))
                .to_string_lossy()
                .into_owned()
        };
        (
            &mut *program,
            (0..count as usize).map(text).collect::<Vec<_>>(),
        )
    };
    let mut ptx = String::from(".version 8.0 // stand-in\n");
    for entry in entries(&program.source, &options) {
        let Some(parameters) = parameters(&entry) else {
            complain(&format!("{entry} has no host build"));
            return COMPILATION;
        };
        let _ = writeln!(ptx, ".visible .entry {entry}({parameters})");
    }
    match CString::new(ptx) {
        Ok(ptx) => program.ptx = ptx,
        Err(_) => return INVALID_INPUT,
    }
    OK
}

/// Declares the two calls that fetch a text.
macro_rules! text {
    ($size:ident, $get:ident, $field:ident) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $size(program: *mut Program, size: *mut usize) -> c_int {
            // SAFETY: a program and an out-parameter of the caller.
            unsafe { *size = (*program).$field.as_bytes_with_nul().len() };
            OK
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $get(program: *mut Program, text: *mut c_char) -> c_int {
            // SAFETY: a program, and room for as much as the other call said.
            unsafe {
                let from = (*program).$field.as_bytes_with_nul();
                std::ptr::copy_nonoverlapping(from.as_ptr().cast(), text, from.len());
            }
            OK
        }
    };
}
text!(nvrtcGetPTXSize, nvrtcGetPTX, ptx);
text!(nvrtcGetProgramLogSize, nvrtcGetProgramLog, log);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut Program) -> c_int {
    // SAFETY: from `nvrtcCreateProgram`, destroyed once.
    drop(unsafe { Box::from_raw(*program) });
    OK
}
