//! What can go wrong when a program is run.

/// A program that could not be run, or did not do what it says.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExecError {
    /// Inputs or settings that do not fit the program.
    #[error("`{field}`: expected {expected}, found {found}")]
    Input {
        /// Which.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A buffer that the machine has no memory for.
    #[error("rank {rank}: no memory for `{buffer}`, {bytes} bytes")]
    Memory {
        /// Rank that asked.
        rank: usize,
        /// Buffer by name.
        buffer: String,
        /// Its size.
        bytes: u64,
    },
    /// A part of the machine that the backend needs.
    #[error("{0}")]
    Missing(String),
    /// The GPU, its driver or one of its libraries refused.
    #[error("GPU: {0}")]
    Device(String),
    /// The run differs from what the program states: a mistake in one of the two.
    #[error("the run disagrees with its program: {0}")]
    Disagrees(String),
}

impl ExecError {
    /// Inputs that do not fit.
    pub fn input(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> ExecError {
        ExecError::Input {
            field: field.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}
