//! `trace study`: how much of the adaptive gain is left under real skew.

use super::body;
use crate::command::compare::to_json;
use crate::error::{Error, Exit, Place};
use crate::output::numbers::{count, times};
use crate::output::table::Grid;
use crate::output::{self, Answer};
use crate::resolve::Given;
use crate::session::Session;
use crate::study::{self, Findings, Mode, report};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Scales when nothing is said.
const GPUS: [u64; 5] = [16, 64, 256, 1024, 2048];

/// `trace study`.
#[derive(Debug, Clone, Args)]
pub struct StudyArgs {
    /// Also over the public captures in DIR/traces
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Write the page, as docs/SKEW.md, and its plots into a folder skew beside it
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Scale; give it several times [default: 16, 64, 256, 1024, 2048]
    #[arg(long, value_name = "N")]
    pub gpus: Vec<u64>,
    /// Steps of a layer, spread over the recording
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub steps: u64,
}

/// Simulates all traces at all scales.
///
/// # Errors
/// Settings that cannot be used, a page that cannot be written.
pub fn run(
    args: &StudyArgs,
    given: &Given,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let mut gpus = match args.gpus.as_slice() {
        [] => GPUS.to_vec(),
        gpus => gpus.to_vec(),
    };
    gpus.sort_unstable();
    gpus.dedup();
    if args.steps == 0 {
        return Err(Error::input(
            Place::flag("--steps"),
            "expected at least 1, found 0",
        ));
    }
    if let Some(page) = &args.markdown {
        output::check_writable(page)?;
    }
    let sources = study::sources(args.data.as_deref())?;
    let (findings, exit) = study::run(sources, &gpus, args.steps, given, session)?;
    if let Some(page) = &args.markdown {
        study::write(&findings, page, &command(args))?;
    }
    let answer = Answer {
        command: "trace study",
        settings: json!({
            "data": args.data.as_ref().map(|path| path.display().to_string()),
            "gpus": gpus,
            "steps": args.steps,
        }),
        seed: given.seed(),
        text: table(&findings),
        body: body([
            ("sources", to_json(&findings.sources)?),
            ("balanced", to_json(&findings.balanced)?),
            ("points", to_json(&findings.points)?),
        ]),
        rows: "points",
    };
    Ok((answer, exit))
}

fn command(args: &StudyArgs) -> String {
    let mut command = String::from("moeplan trace study");
    if args.data.is_some() {
        command += " --data ../shared/data";
    }
    for gpus in &args.gpus {
        command += &format!(" --gpus {gpus}");
    }
    command + &format!(" --steps {} --markdown docs/SKEW.md", args.steps)
}

fn table(findings: &Findings) -> String {
    let mut text = String::new();
    for mode in Mode::ALL {
        let scales = findings
            .gpus
            .iter()
            .map(|gpus| format!("{} GPUs", count(*gpus)));
        let title = format!("gain, {}", mode.title());
        let mut grid = Grid::new([title].into_iter().chain(scales));
        for family in findings.families() {
            let cells = findings.gpus.iter().map(|&gpus| {
                let points = findings.at(mode, gpus, Some(family));
                let gains: Vec<f64> = points.iter().map(|p| p.gain).collect();
                let left: Vec<f64> = points.iter().map(|p| p.left).collect();
                format!(
                    "{} ({:.0} % left)",
                    times(report::median(&gains)),
                    100.0 * report::median(&left)
                )
            });
            grid.row([family.to_owned()].into_iter().chain(cells));
        }
        text += &grid.render(30);
        text.push('\n');
    }
    text
}
