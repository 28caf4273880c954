//! The `moeplan` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    moeplan::main_on_this_machine()
}
