//! `report`: a study, or the paper's figures, as a file to hand to others.

use crate::command::compare::Job;
use crate::error::{Error, Exit};
use crate::output::Answer;
use crate::report::{self, Page};
use crate::resolve::{self, Given, resolve};
use crate::session::Session;
use crate::validate::lab::Lab;
use std::path::PathBuf;

/// What is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reported {
    /// The figures and tables of the paper.
    Paper,
}

/// Reports `what`, or the study of `given`; figures and numbers also as files in `assets`.
///
/// # Errors
/// Settings that cannot be run, files that cannot be written.
pub fn run(
    what: Option<Reported>,
    assets: Option<&PathBuf>,
    mut given: Given,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let (page, interrupted): (Page, bool) = match what {
        Some(Reported::Paper) => {
            let (_, hardware) = resolve::cluster(&given)?;
            resolve::gpus_only(&hardware)?;
            (report::paper(&Lab::new(hardware)?, session)?, false)
        }
        None => {
            Job::Main.defaults(&mut given.file);
            let strategies = Job::Compare.strategies();
            let resolved = resolve(&given, &strategies)?;
            report::runs(&given, &resolved, &strategies, session)?
        }
    };
    if let Some(folder) = assets {
        report::write_assets(&page, folder)?;
    }
    let exit = if interrupted {
        Exit::Interrupted
    } else {
        Exit::Done
    };
    Ok((Answer::document(report::render(&page)), exit))
}
