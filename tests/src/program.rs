//! Runs of the whole program.

use moeplan::error::Exit;
use moeplan::session::Streams;

/// What a run of the program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub exit: Exit,
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

/// Runs `moeplan` in this process, arguments split at spaces.
pub fn moeplan(args: &str) -> Ran {
    moeplan_args(&args.split_whitespace().collect::<Vec<_>>())
}

/// Runs `moeplan` in this process.
pub fn moeplan_args(args: &[&str]) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = Streams {
        stdout: &mut stdout,
        stderr: &mut stderr,
        watched: false,
    };
    let exit = moeplan::run(
        std::iter::once("moeplan").chain(args.iter().copied()),
        streams,
    );
    Ran {
        exit,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}
