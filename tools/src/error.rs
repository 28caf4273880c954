//! Errors as a user meets them, and exit codes.

use moeplan_executor::ExecError;
use moeplan_sim::cost::nccl::NcclError;
use moeplan_traces::TraceError;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Something that should not happen.
    Unexpected,
    /// Input or settings that cannot be used.
    BadInput,
    /// A part of the machine that is needed is missing.
    MachineLacks,
    /// No plan is feasible.
    NoFeasiblePlan,
    /// Validation is worse than recorded.
    ValidationWorse,
    /// Interrupted; what was done is kept.
    Interrupted,
}

impl Exit {
    /// The number the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Unexpected => 1,
            Exit::BadInput => 2,
            Exit::MachineLacks => 3,
            Exit::NoFeasiblePlan => 4,
            Exit::ValidationWorse => 5,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Where a setting comes from. Prints as ``study.toml:12: `layer.top-k`: `` or ``--top-k: ``.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// File as the user named it.
    pub file: Option<String>,
    /// Line, counted from 1.
    pub line: Option<usize>,
    /// Path of the field, or the flag.
    pub field: Option<String>,
}

impl Place {
    /// A whole file.
    pub fn file(name: impl Into<String>) -> Place {
        Place {
            file: Some(name.into()),
            ..Place::default()
        }
    }

    /// A flag, `--` included.
    pub fn flag(name: impl Into<String>) -> Place {
        Place {
            field: Some(name.into()),
            ..Place::default()
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": ")?;
        }
        match &self.field {
            Some(flag) if flag.starts_with("--") => write!(f, "{flag}: "),
            Some(field) => write!(f, "`{field}`: "),
            None => Ok(()),
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings or a file that cannot be used.
    #[error("{place}{message}")]
    Input {
        /// File, line, field or flag.
        place: Place,
        /// What was expected and found.
        message: String,
    },
    /// A trace or a routing specification that cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Collective parameters or a library profile that cannot be used.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// A file that could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's own words.
        source: io::Error,
    },
    /// Results could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file, or `standard output`.
        path: String,
        /// The system's own words.
        source: io::Error,
    },
    /// The user asked to stop before anything worth keeping was done.
    #[error("interrupted: nothing was written")]
    Interrupted,
    /// A part of the machine that is needed and not there.
    #[error("{0}")]
    Missing(String),
    /// Something that should not happen.
    #[error("{0}")]
    Unexpected(String),
}

impl From<ExecError> for Error {
    fn from(error: ExecError) -> Error {
        match error {
            ExecError::Input {
                field,
                expected,
                found,
            } => {
                let place = Place {
                    field: Some(field),
                    ..Place::default()
                };
                Error::input(place, format!("expected {expected}, found {found}"))
            }
            ExecError::Memory { .. } => Error::input(Place::default(), error.to_string()),
            ExecError::Missing(what) => Error::Missing(what),
            ExecError::Disagrees(_) | ExecError::Device(_) => Error::Unexpected(error.to_string()),
        }
    }
}

impl Error {
    /// Input that cannot be used.
    pub fn input(place: Place, message: impl Into<String>) -> Error {
        Error::Input {
            place,
            message: message.into(),
        }
    }

    /// How the program ends on this.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Input { .. } | Error::Trace(_) | Error::Nccl(_) | Error::Read { .. } => {
                Exit::BadInput
            }
            // A folder that is not there or not ours to write is the user's to mend.
            Error::Write { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory => Exit::BadInput,
                _ => Exit::Unexpected,
            },
            Error::Interrupted => Exit::Interrupted,
            Error::Missing(_) => Exit::MachineLacks,
            Error::Unexpected(_) => Exit::Unexpected,
        }
    }
}
