//! `calibrate`: this machine as a hardware file.

use crate::calibrate::{Calibration, Spread, cpu, gpu};
use crate::error::{Error, Exit};
use crate::machine::{self, Gpus};
use crate::output::Answer;
use crate::output::numbers::percent;
use crate::resolve::Given;
use crate::session::Session;
use crate::settings::BackendKind;
use moeplan_sim::hardware::Hardware;
use serde::Serialize;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// A machine of either kind, as it is told.
struct Measured {
    /// Of the hardware file and of the JSON.
    section: &'static str,
    params: Value,
    spread: Spread,
    interrupted: bool,
    text: String,
}

impl Measured {
    fn new<P: Serialize>(
        section: &'static str,
        calibration: &Calibration<P>,
        text: String,
    ) -> Result<Measured, Error> {
        // What is written has to be readable.
        Hardware::from_toml(&text)
            .map_err(|error| Error::Unexpected(format!("the hardware file: {error}")))?;
        let params = serde_json::to_value(&calibration.params)
            .map_err(|error| Error::Unexpected(format!("JSON: {error}")))?;
        Ok(Measured {
            section,
            params,
            spread: calibration.spread,
            interrupted: calibration.interrupted,
            text,
        })
    }
}

/// Runs `calibrate`. The hardware file is the result: it is written where `--output` says, whole or
/// not at all, and runs done so far lie beside it until then.
///
/// # Errors
/// A machine that refuses, or files that cannot be written.
pub fn run(given: &Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    let settings = given.flags.calibrate.over(&given.file.calibrate);
    let kind = settings.backend.unwrap_or_default();
    let rounds = settings.repeats.unwrap_or(7);
    if !(1..=1000).contains(&rounds) {
        let message = format!("expected 1 to 1000, found {rounds}");
        let place = given.place(&["calibrate"], None, "repeats");
        return Err(Error::input(place, message));
    }
    let partial = session.output.file.as_ref().map(|path| {
        let mut name = path.clone().into_os_string();
        name.push(".partial");
        PathBuf::from(name)
    });
    let Measured {
        section,
        params,
        spread,
        interrupted,
        text,
    } = match kind {
        BackendKind::Cpu => {
            let calibration = cpu::calibrate(rounds, partial.as_deref(), session)?;
            Measured::new("cpu", &calibration, cpu::to_toml(&calibration)?)?
        }
        BackendKind::Cuda => {
            let mut backend = machine::cuda(Gpus {
                devices: NonZeroUsize::MIN,
                ranks_apart: true,
            })?;
            let calibration = gpu::calibrate(rounds, partial.as_deref(), &mut backend, session)?;
            Measured::new("gpu", &calibration, gpu::to_toml(&calibration)?)?
        }
    };
    session.note(&format!(
        "{} steps, {} rounds; rounds differ by {} of the step time (median)",
        spread.cases,
        spread.rounds,
        percent(spread.step_time)
    ));
    if interrupted {
        let message = "interrupted: what was measured is kept, run the same command to go on";
        session.note(message);
        session.output.file = None;
        return Ok((Answer::default(), Exit::Interrupted));
    }
    if let Some(partial) = partial {
        // It is in the hardware file now; one that cannot be removed only saves time once more.
        let _ = std::fs::remove_file(partial);
    }
    let answer = Answer {
        command: "calibrate",
        settings: json!({ "backend": kind, "repeats": rounds }),
        seed: 0,
        body: [
            (section.to_owned(), params),
            ("spread".to_owned(), json!(spread)),
        ]
        .into_iter()
        .collect(),
        rows: "spread",
        text,
    };
    Ok((answer, Exit::Done))
}
