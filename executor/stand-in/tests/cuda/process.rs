//! Starts this test binary again, with the stand-in libraries where a process looks for them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a process told: lines `name=value`.
#[derive(Debug)]
pub(crate) struct Told(String);

impl Told {
    /// The number of that name.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let prefix = format!("{name}=");
        let line = self.0.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.0))
            .parse()
            .unwrap()
    }
}

/// A case in a process.
pub(crate) struct Child<'a> {
    case: &'a str,
    libraries: bool,
    nccl: bool,
}

impl<'a> Child<'a> {
    pub(crate) fn new(case: &'a str) -> Child<'a> {
        Child {
            case,
            libraries: true,
            nccl: true,
        }
    }

    pub(crate) fn without_libraries(mut self) -> Child<'a> {
        self.libraries = false;
        self
    }

    pub(crate) fn without_nccl(mut self) -> Child<'a> {
        self.nccl = false;
        self
    }

    /// What it told, or its error output where it failed.
    pub(crate) fn run(&self, settings: &[(&str, &str)]) -> Result<Told, String> {
        let folder = self.libraries.then(|| libraries(self.nccl));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
            .env("STAND_IN_CASE", self.case)
            .env("RUST_BACKTRACE", "0")
            .env_remove("LD_LIBRARY_PATH")
            .envs(settings.iter().copied());
        if let Some(folder) = &folder {
            command
                .env("LD_LIBRARY_PATH", folder)
                .env("CUDA_HOME", toolkit())
                .env("XDG_CACHE_HOME", folder.split(':').next().unwrap());
        }
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(Told(text(&output.stdout))),
            false => Err(text(&output.stderr) + &text(&output.stdout)),
        }
    }
}

/// Runs a case with the stand-in libraries.
pub(crate) fn run(case: &str, settings: &[(&str, &str)]) -> Result<Told, String> {
    Child::new(case).run(settings)
}

/// Where `.ci/nvrtc.sh` puts what it fetches.
fn fetched() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("nvrtc/nvidia")
}

/// A folder whose `include` has the headers of fp16 and bf16: NVIDIA's where they were fetched; else the host build's, which
/// the stand-in's NVRTC does not read.
fn toolkit() -> PathBuf {
    let real = fetched().join("cuda_runtime");
    if real.join("include/cuda_fp16.h").is_file() {
        return real;
    }
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().join("stand-in/toolkit");
    std::fs::create_dir_all(&folder).unwrap();
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/host");
    link(&host, &folder.join("include"));
    folder
}

/// A search path on which libcuda.so is the stand-in and libnvrtc.so is NVIDIA's where `.ci/nvrtc.sh` put it: then the
/// very PTX that a GPU would get is loaded, and its parameters are checked. Else that is the stand-in too.
fn libraries(nccl: bool) -> String {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap();
    let stand_in = built.join("libmoeplan_stand_in.so");
    assert!(
        stand_in.is_file(),
        "{} is built with this test",
        stand_in.display()
    );
    let folder = built.join(if nccl {
        "stand-in"
    } else {
        "stand-in/without-nccl"
    });
    std::fs::create_dir_all(&folder).unwrap();
    if nccl {
        link(&stand_in, &folder.join("libnccl.so"));
    }
    link(&stand_in, &folder.join("libcuda.so"));
    link(&stand_in, &folder.join("libcublas.so"));
    let nvrtc = fetched().join("cuda_nvrtc/lib");
    let real = nvrtc.join("libnvrtc.so.12");
    if real.is_file() {
        link(&real, &folder.join("libnvrtc.so"));
        return format!("{}:{}", folder.display(), nvrtc.display());
    }
    link(&stand_in, &folder.join("libnvrtc.so"));
    folder.display().to_string()
}

/// Tests run side by side: a link is made aside and renamed.
fn link(to: &Path, at: &PathBuf) {
    if std::fs::read_link(at).is_ok_and(|there| there == to) {
        return;
    }
    let aside = at.with_extension(format!("{:?}", std::thread::current().id()));
    let _ = std::fs::remove_file(&aside);
    std::os::unix::fs::symlink(to, &aside).unwrap();
    std::fs::rename(&aside, at).unwrap();
}
