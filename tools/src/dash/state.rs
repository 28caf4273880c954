//! Everything the dashboard knows. Views read it, [`super::update`] alone changes it.

use super::points::Points;
use super::recording::Recording;
use super::theme::Theme;
use super::whatif::{Answer, Change};
use crate::run_file::{Block, Detail, RunRecord, StepRecord};
use ratatui::crossterm::event::{KeyEvent, MouseEvent};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Least size that views are drawn at.
pub const LEAST: (u16, u16) = (80, 24);
/// Simulated steps kept besides recorded ones.
pub const MOST_SIMULATED: usize = 8;

/// What is shown.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// How long a step takes, and why.
    Overview,
    /// Which experts are hot.
    Experts,
    /// What ran when, and what decided.
    Timeline,
    /// Which wires are busy.
    Network,
    /// Which GPUs stand out.
    Cluster,
    /// Which strategy wins, and by what.
    Compare,
    /// Which plans of a sweep are worth their price.
    Sweep,
    /// What other settings would do.
    WhatIf,
}

impl View {
    /// All, in the order of their keys.
    pub const ALL: [View; 8] = [
        View::Overview,
        View::Experts,
        View::Timeline,
        View::Network,
        View::Cluster,
        View::Compare,
        View::Sweep,
        View::WhatIf,
    ];

    /// The name on its tab.
    pub const fn name(self) -> &'static str {
        match self {
            View::Overview => "Overview",
            View::Experts => "Experts",
            View::Timeline => "Timeline",
            View::Network => "Network",
            View::Cluster => "Cluster",
            View::Compare => "Compare",
            View::Sweep => "Sweep",
            View::WhatIf => "What-if",
        }
    }

    /// Its place among all.
    pub fn index(self) -> usize {
        View::ALL.iter().position(|view| *view == self).unwrap_or(0)
    }

    /// Whether it shows one step in full.
    pub fn needs_detail(self) -> bool {
        match self {
            View::Experts | View::Timeline | View::Network | View::Cluster => true,
            View::Overview | View::Compare | View::Sweep | View::WhatIf => false,
        }
    }
}

/// What happens to the dashboard.
#[derive(Debug, Clone)]
pub enum Msg {
    /// A key was pressed.
    Key(KeyEvent),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// The terminal is this large.
    Resize(u16, u16),
    /// Time passed.
    Tick(Duration),
    /// More of the run.
    Blocks(Vec<Block>),
    /// The file was replaced: a new run begins.
    Restart,
    /// A step was simulated again to be shown in full; or why it could not be.
    Detail(u32, u16, Result<Arc<Detail>, String>),
    /// What other settings do; or why they cannot be.
    WhatIf(Result<Box<Answer>, String>),
    /// A sweep, as far as it is.
    Points(Points),
    /// The screen was saved, or not.
    Saved(Result<Vec<PathBuf>, String>),
    /// Whoever sends the run failed.
    Failed(String),
}

/// What the loop is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// End.
    Quit,
    /// Write the screen to files.
    Save,
    /// Simulate a step again, with the timelines of these ranks.
    Detail {
        /// The step.
        step: u32,
        /// The strategy.
        strategy: u16,
        /// Ranks whose timelines are wanted.
        ranks: Range<usize>,
    },
    /// Simulate a step under other settings.
    WhatIf {
        /// The step.
        step: u32,
        /// The strategy.
        strategy: u16,
        /// The settings.
        change: Change,
    },
}

/// How the run comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// More may come.
    Running,
    /// All of it is there.
    Complete,
    /// It stopped, and why.
    Failed(String),
}

/// How deep the cluster view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All GPUs.
    World,
    /// The nodes of a pod.
    Pod,
    /// The GPUs of a node.
    Node,
    /// The operations of a GPU.
    Gpu,
}

/// The part of the timeline in sight: centre and length as shares of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Start, 0 to 1.
    pub start: f64,
    /// Length, above 0, at most 1.
    pub length: f64,
}

impl Window {
    /// The whole step.
    pub const ALL: Window = Window {
        start: 0.0,
        length: 1.0,
    };

    /// Moved by `share` of what is in sight.
    pub fn panned(self, share: f64) -> Window {
        let start = (self.start + share * self.length).clamp(0.0, 1.0 - self.length);
        Window { start, ..self }
    }

    /// `factor` times as much in sight, around the middle.
    pub fn zoomed(self, factor: f64) -> Window {
        let length = (self.length * factor).clamp(1e-6, 1.0);
        let start = self.start + (self.length - length) / 2.0;
        Window {
            start: start.clamp(0.0, 1.0 - length),
            length,
        }
    }
}

/// What is chosen in the what-if view.
#[derive(Debug, Clone, Default)]
pub struct WhatIf {
    /// The line.
    pub field: usize,
    /// The settings.
    pub change: Change,
    /// What they do.
    pub answer: Option<Result<Box<Answer>, String>>,
    /// Whether an answer is on its way.
    pub pending: bool,
}

/// Everything the dashboard knows.
#[derive(Debug, Clone)]
pub struct State {
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// Colours.
    pub theme: Theme,
    /// Where the run comes from, for people.
    pub source: String,
    /// The run.
    pub run: Recording,
    /// How it comes in.
    pub status: Status,
    /// Steps simulated again, by (step, strategy), oldest first in `simulated_order`.
    pub simulated: BTreeMap<(u32, u16), Arc<Detail>>,
    /// The order they came in.
    pub simulated_order: Vec<(u32, u16)>,
    /// The step asked for and not yet there.
    pub pending: Option<(u32, u16)>,
    /// Steps that cannot be simulated again, and why.
    pub refused: Option<String>,
    /// Whether there is a thread that simulates.
    pub has_laboratory: bool,
    /// Whether steps of this run can be simulated here.
    pub can_simulate: bool,
    /// The view.
    pub view: View,
    /// Whether the keys are shown.
    pub help: bool,
    /// Place of the step that is shown among those known.
    pub cursor: usize,
    /// Whether the cursor stays on the last step as the run grows.
    pub at_end: bool,
    /// Whether steps play.
    pub playing: bool,
    /// Steps a second.
    pub speed: f64,
    /// Part of a step played.
    pub played: f64,
    /// The strategy that is shown.
    pub strategy: usize,
    /// Text that rows must hold.
    pub filter: String,
    /// Whether it is being typed.
    pub filtering: bool,
    /// A line for the user, until the next key.
    pub message: Option<String>,
    /// What each view shows, of what it can.
    pub metric: [usize; View::ALL.len()],
    /// How each view orders.
    pub sort: [usize; View::ALL.len()],
    /// The selected row of each view.
    pub row: [usize; View::ALL.len()],
    /// The selected column of each view.
    pub column: [usize; View::ALL.len()],
    /// The part of the timeline in sight.
    pub window: Window,
    /// How deep the cluster view is.
    pub level: Level,
    /// The GPU selected in the cluster.
    pub gpu: usize,
    /// What-if.
    pub whatif: WhatIf,
    /// The sweep.
    pub points: Option<Points>,
}

impl State {
    /// A dashboard over nothing yet.
    pub fn new(source: String, theme: Theme, size: (u16, u16)) -> State {
        State {
            size,
            theme,
            source,
            run: Recording::default(),
            status: Status::Running,
            simulated: BTreeMap::new(),
            simulated_order: Vec::new(),
            pending: None,
            refused: None,
            has_laboratory: false,
            can_simulate: false,
            view: View::Overview,
            help: false,
            cursor: 0,
            at_end: true,
            playing: false,
            speed: 4.0,
            played: 0.0,
            strategy: 0,
            filter: String::new(),
            filtering: false,
            message: None,
            metric: [0; View::ALL.len()],
            sort: [0; View::ALL.len()],
            row: [0; View::ALL.len()],
            column: [0; View::ALL.len()],
            window: Window::ALL,
            level: Level::World,
            gpu: 0,
            whatif: WhatIf::default(),
            points: None,
        }
    }

    /// The step that is shown.
    pub fn step(&self) -> Option<&StepRecord> {
        self.run.steps.get(self.cursor)
    }

    /// That step under the strategy that is shown.
    pub fn run_now(&self) -> Option<&RunRecord> {
        self.step()?.runs.get(self.strategy)
    }

    /// The step that is shown in full; or else the nearest there is.
    pub fn detail(&self) -> Option<&Detail> {
        let step = self.step()?.index;
        let strategy = self.strategy as u16;
        if let Some(exact) = self.exact_detail(step, strategy) {
            return Some(exact);
        }
        let near = self
            .run
            .details
            .iter()
            .chain(&self.simulated)
            .filter(|((_, other), _)| *other == strategy);
        near.min_by_key(|((other, _), _)| other.abs_diff(step))
            .map(|(_, detail)| &**detail)
    }

    /// This very step in full; what was simulated for the user goes before what was recorded.
    pub fn exact_detail(&self, step: u32, strategy: u16) -> Option<&Detail> {
        let key = (step, strategy);
        let found = self.simulated.get(&key).or(self.run.details.get(&key));
        found.map(|detail| &**detail)
    }

    /// What the view shows, of `count`.
    pub fn metric_of(&self, view: View, count: usize) -> usize {
        self.metric[view.index()] % count.max(1)
    }

    /// How the view orders, of `count`.
    pub fn sort_of(&self, view: View, count: usize) -> usize {
        self.sort[view.index()] % count.max(1)
    }

    /// Whether `text` holds what is asked for.
    pub fn keeps(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// Whether something moves by itself.
    pub fn is_moving(&self) -> bool {
        self.playing
    }

    /// GPUs that share a leaf switch in each rail: a pod.
    pub fn gpus_per_pod(&self) -> usize {
        let header = self.run.header.as_ref();
        let nodes = header
            .and_then(|header| {
                header
                    .settings
                    .pointer("/hardware/network/nodes-per-leaf")?
                    .as_u64()
            })
            .unwrap_or(16)
            .clamp(1, 1 << 16);
        let per_node = header.map_or(1, |header| header.gpus_per_node);
        (nodes * per_node) as usize
    }
}
