//! The paper's figures and tables, simulated anew, with what was published marked.

mod adaptive;
mod layer;
mod network;

use super::page::{Figure, Page, Section};
use super::trust;
use crate::error::Error;
use crate::output::chart::Curve;
use crate::play::refused;
use crate::session::Session;
use crate::validate::lab::{Lab, figure12_base, figure12_large};
use crate::validate::{Outcome, published};
use adaptive::{figure3, figure5, figure12, figure13, table6};
use layer::{figure1, figure14, figure15, table2, table5};
use moeplan_sim::spec::SpecError;
use network::{figure16a, figure16b, figure18};

const SCALES: [u64; 8] = [16, 32, 64, 128, 256, 512, 1_024, 2_048];
const FACTORS: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

/// Simulates everything in `lab` and reports it.
///
/// # Errors
/// None of the user's.
pub fn paper(lab: &Lab, session: &mut Session<'_>) -> Result<Page, Error> {
    let outcomes = session
        .on_threads(|| published::outcomes(lab))?
        .map_err(|error| refused(&error))?;
    let of = |source: &str| -> Vec<Outcome> {
        let found = outcomes.iter().filter(|outcome| outcome.source == source);
        found.cloned().collect()
    };
    let section = |title: &str, text: &str, figures: Vec<Figure>, sources: &[&str]| Section {
        title: title.to_owned(),
        text: vec![text.to_owned()],
        figures,
        tables: sources
            .iter()
            .map(|source| {
                let id = format!("published-{}", source.to_lowercase().replace(' ', "-"));
                trust::table(&id, source, &of(source))
            })
            .filter(|table| !table.rows.is_empty())
            .collect(),
    };
    let spec = |figure: Result<Figure, Refused>| figure.map_err(Error::from);
    let sections = vec![
        section(
            "Figure 1: needed capacity over training",
            "The paper trains SwinV2 and sees the workload change up to 4.38x within a run, unlike in each \
             layer. Its recording is not public: these are three layers of the trace `digits`, which this \
             project recorded while training.",
            vec![figure1()?],
            &[],
        ),
        section(
            "Figure 3: EP+MP against EP+DP",
            "H = 16K, D = 2048. Published: the two differ by 7.39 % to 27.76 %, by top-k and f. GPUs, experts \
             and tokens are not stated: 64 GPUs, 16 experts, 4,096 tokens a GPU here.",
            vec![spec(figure3(lab))?],
            &["Figure 3"],
        ),
        section(
            "Table 2: compute and All-to-All of one step",
            "H = D = 4K, two experts a GPU, 64K tokens a step.",
            vec![spec(table2(lab, &of("Table 2")))?],
            &["Table 2"],
        ),
        section(
            "Figure 5: which pipelining is best",
            "The 81 models of Table 6 at each scale: for how many of them each All-to-All and degree is the \
             fastest of the eight static choices. No choice is best for all, which is why Tutel adapts. The \
             paper's text gives no digits of this plot.",
            vec![spec(figure5(lab))?],
            &[],
        ),
        section(
            "Table 5: memory of one layer",
            "",
            vec![table5(&of("Table 5"))?],
            &["Table 5"],
        ),
        section(
            "Table 6: gain of adaptive pipelining over static choices",
            "81 models a scale.",
            table6(&of("Table 6"))?,
            &["Table 6"],
        ),
        section(
            "Figure 12: adaptive parallelism",
            "16 experts on 64 GPUs, D = 2K. Published in words: DP wins at high capacity, then r = 1, then \
             r > 1 as capacity falls.",
            vec![
                spec(figure12(
                    lab,
                    "Base: 4K tokens, H = 2K",
                    figure12_base,
                    "fig12-base",
                ))?,
                spec(figure12(
                    lab,
                    "Large: 1K tokens, H = 32K",
                    figure12_large,
                    "fig12-large",
                ))?,
            ],
            &["Figure 12"],
        ),
        section(
            "Figure 13: adaptive pipelining by capacity",
            "D = H = 4096, two experts a GPU, 4,096 tokens a step; against linear at degree 1. Published: up \
             to 39 % at f = 4, up to 57 % at f = 8.",
            vec![spec(figure13(lab))?],
            &["Figure 13"],
        ),
        section(
            "Figure 14: the feature ladder over scale",
            "16,384 tokens a step, f = 1, D = H = 2048, two experts a GPU, k = 2, r = 1.",
            vec![spec(figure14(lab))?],
            &["Figure 14"],
        ),
        section(
            "Figure 15: where the time goes over scale",
            "The same layer with all of Tutel's features: time on the compute stream and time of All-to-Alls; \
             the step is shorter than both together where they overlap.",
            vec![spec(figure15(lab))?],
            &[],
        ),
        section(
            "Figure 16: why the linear All-to-All does not scale",
            "What each peer is sent shrinks with their number, until messages no longer fill the link (a); \
             with it falls the bus bandwidth (b; sizes as nccl-tests counts them). The paper gives no digits of \
             these plots.",
            vec![figure16a(lab)?, figure16b(lab)?],
            &[],
        ),
        section(
            "Figure 18: linear against 2DH All-to-All",
            "Published in the first version of the paper: 2DH up to 20.7x over linear at 2,048 GPUs.",
            figure18(lab)?,
            &["First version of the paper"],
        ),
        section(
            "Table 7: SwinV2-MoE",
            "Images a second and GPU; `moeplan model swinv2-moe-b` tells more where it is built.",
            Vec::new(),
            &["Table 7", "Table 8"],
        ),
        trust::section(&outcomes),
    ];
    let sections = sections
        .into_iter()
        .filter(|section| !(section.figures.is_empty() && section.tables.is_empty()))
        .collect();
    Ok(Page {
        title: "Tutel's evaluation, simulated anew".into(),
        about: vec![
            format!("Cluster: {}", lab.hardware.description),
            "Crosses are published figures, where the paper's text gives any.".into(),
        ],
        facts: super::facts(0, "moeplan report paper --output paper.html"),
        sections,
        settings: toml::to_string(&lab.hardware).unwrap_or_default(),
    })
}

/// What simulating a figure fails with.
enum Refused {
    Spec(SpecError),
    Plot(Error),
}

impl From<SpecError> for Refused {
    fn from(error: SpecError) -> Refused {
        Refused::Spec(error)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Plot(error)
    }
}

impl From<Refused> for Error {
    fn from(error: Refused) -> Error {
        match error {
            Refused::Spec(error) => refused(&error),
            Refused::Plot(error) => error,
        }
    }
}

/// A curve of `of` at every one of `places`.
fn curve<E>(
    name: impl Into<String>,
    places: impl IntoIterator<Item = f64>,
    of: impl Fn(f64) -> Result<f64, E>,
) -> Result<Curve, E> {
    let points = places.into_iter().map(|x| Ok((x, of(x)?)));
    Ok(Curve {
        name: name.into(),
        points: points.collect::<Result<_, E>>()?,
    })
}

fn over_scales() -> impl Iterator<Item = f64> {
    SCALES.into_iter().map(|gpus| gpus as f64)
}

/// What came out of a case, and what was published of it, if it is one of `outcomes`.
fn found(outcomes: &[Outcome], id: &str) -> Option<(f64, f64)> {
    let outcome = outcomes.iter().find(|outcome| outcome.id == id)?;
    Some((outcome.simulated.unwrap_or(0.0), outcome.published))
}
