//! Copies per layer and expert, listed: `list_index,expert,count` without a header, as OLMoE's
//! authors publish them, or under a header such as `layer_id,expert_id,count`, as SGLang's
//! recorder wrote before it dumped tensors; columns of the step and the source rank may stand
//! beside these. Experts that are not listed have no copies.

use std::collections::BTreeMap;
use std::vec;

use super::text::Records;
use super::tokens::MAX_EXPERT;
use super::{ImportOptions, ImportReport, Imported, Sizes, Steps, names};
use crate::error::{Place, TraceError};
use crate::format::{TraceStep, parse_number};
use crate::input::Source;
use crate::routing::{MAX_CELLS, RoutingStep};

/// Names of the columns, where there is no header.
const COLUMNS: [&str; 3] = ["list_index", "expert", "count"];

/// Most counts: they are sorted in memory.
const MAX_LISTED: usize = MAX_CELLS / 16;

/// Which columns hold what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    step: Option<usize>,
    layer: Option<usize>,
    rank: Option<usize>,
    expert: usize,
    count: usize,
}

impl Columns {
    /// Nothing, if this is not the header of such a file.
    pub(super) fn find(header: &[&str]) -> Option<Self> {
        let find = |names: &[&str]| header.iter().position(|name| names::is(name, names));
        let columns = Self {
            step: find(names::STEP),
            layer: find(names::LAYER),
            rank: find(names::RANK),
            expert: find(names::EXPERT)?,
            count: find(names::COUNT)?,
        };
        let keys = [columns.step, columns.layer, columns.rank];
        let known = 2 + keys.iter().flatten().count();
        (known == header.len()).then_some(columns)
    }
}

/// Counts in the order of (step, layer, source rank, expert).
#[derive(Debug, Default)]
pub(super) struct Listing {
    counts: BTreeMap<(u64, u32, u32, u32), u32>,
    largest_expert: u32,
    largest_rank: u32,
    stepped: bool,
    ranked: bool,
}

impl Listing {
    /// Adds a record, whose field in column `c` is `field(c, most)`.
    pub(super) fn add(
        &mut self,
        columns: &Columns,
        place: impl Fn() -> Place,
        field: impl Fn(usize, u64) -> Result<u64, TraceError>,
    ) -> Result<(), TraceError> {
        let optional =
            |column: Option<usize>, most: u64| column.map_or(Ok(0), |column| field(column, most));
        let most = u64::from(u32::MAX);
        let key = (
            optional(columns.step, u64::MAX)?,
            optional(columns.layer, most)? as u32,
            optional(columns.rank, MAX_EXPERT)? as u32,
            field(columns.expert, MAX_EXPERT)? as u32,
        );
        let count = field(columns.count, most)? as u32;
        self.stepped |= columns.step.is_some();
        self.ranked |= columns.rank.is_some();
        self.largest_rank = self.largest_rank.max(key.2);
        self.largest_expert = self.largest_expert.max(key.3);
        let again = self.counts.insert(key, count).is_some();
        if again || self.counts.len() > MAX_LISTED {
            return Err(TraceError::invalid(
                place().field("expert"),
                format!(
                    "every expert of list {} once, at most {MAX_LISTED} counts",
                    key.1
                ),
                format!("{} again", key.3),
            ));
        }
        Ok(())
    }

    /// All steps.
    pub(super) fn build(
        self,
        layout: &str,
        file: &Place,
        options: &ImportOptions,
    ) -> Result<Imported, TraceError> {
        if self.counts.is_empty() {
            let expected = "at least one count";
            return Err(TraceError::invalid(file.clone(), expected, "none"));
        }
        let largest = self.largest_expert as usize;
        let experts = match options.experts {
            None => (largest + 1).next_power_of_two(),
            Some(experts) if experts > largest => experts,
            Some(experts) => {
                let least = largest + 1;
                let expected = format!("at least {least} (the largest expert id is {largest})");
                let place = file.clone().field("experts");
                return Err(TraceError::invalid(place, expected, experts.to_string()));
            }
        };
        let ranks = self.largest_rank as usize + 1;
        let mut layers: Vec<(u64, u32)> = self.counts.keys().map(|key| (key.0, key.1)).collect();
        layers.dedup();
        let cells = layers.len().saturating_mul(ranks).saturating_mul(experts);
        if cells > MAX_CELLS {
            return Err(TraceError::invalid(
                file.clone(),
                format!("steps * layers * ranks * experts of at most {MAX_CELLS}"),
                format!("{} * {ranks} * {experts}", layers.len()),
            ));
        }
        let assumed = self.assumed(options, experts);
        let (mut steps, mut rounded) = (Vec::with_capacity(layers.len()), 0);
        for (step, layer) in layers {
            let mut counts = vec![0; ranks * experts];
            let of = (step, layer, 0, 0)..=(step, layer, u32::MAX, u32::MAX);
            for (&(_, _, rank, expert), &count) in self.counts.range(of) {
                counts[rank as usize * experts + expert as usize] = count;
            }
            if let Some(divisor) = options.dp_size {
                rounded += super::tensor::divide(&mut counts, divisor);
            }
            let top_k = options.top_k.unwrap_or(1);
            let built = RoutingStep::new(step, layer, top_k, experts, counts);
            steps.push(built.map_err(|error| {
                let field = error.place().field.clone().unwrap_or_default();
                error.at(file.clone().field(format!("list {layer}: {field}")))
            })?);
        }
        let shape = steps[0].shape();
        let even = shape.is_some() && steps.iter().all(|step| step.shape() == shape);
        let sizes = Sizes {
            experts,
            top_k: steps[0].top_k(),
            source_ranks: ranks,
            tokens_per_rank: shape.filter(|_| even).map(|shape| shape.tokens_per_rank),
        };
        let steps = Listed {
            steps: steps.into_iter(),
            rounded,
        };
        Ok(Imported::new(layout, sizes, assumed, steps))
    }

    fn assumed(&self, options: &ImportOptions, experts: usize) -> Vec<String> {
        let mut assumed = Vec::new();
        if options.experts.is_none() {
            let how = "the largest id plus one, rounded up to a power of two";
            assumed.push(format!("{experts} experts: {how}"));
        }
        if options.top_k.is_none() {
            assumed.push(names::TOP_K_ASSUMED.into());
        }
        if !self.stepped {
            assumed.push("one step: the file does not number them".into());
        }
        if !self.ranked {
            assumed.push("one source rank: the file does not tell them apart".into());
        }
        assumed
    }
}

/// Reads all records.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let mut records = Records::open(source)?;
    let mut more = records.advance()?;
    let mut header: Vec<String> = records.fields();
    let found = Columns::find(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let layout = if found.is_some() {
        more = records.advance()?;
        "counts per layer and expert, CSV with a header (SGLang)"
    } else {
        header = COLUMNS.map(str::to_owned).to_vec();
        "counts per layer and expert, CSV without a header (OLMoE)"
    };
    let columns = found.unwrap_or(Columns {
        step: None,
        layer: Some(0),
        rank: None,
        expert: 1,
        count: 2,
    });
    let mut listing = Listing::default();
    while more {
        if records.len() != header.len() {
            return Err(TraceError::invalid(
                records.place(),
                format!("{} columns: {}", header.len(), header.join(",")),
                format!("{} columns", records.len()),
            ));
        }
        listing.add(
            &columns,
            || records.place(),
            |column, most| {
                let place = || records.place().field(header[column].as_str());
                parse_number(records.field(column).trim(), most, place)
            },
        )?;
        more = records.advance()?;
    }
    listing.build(layout, &source.place(), options)
}

/// Steps that are in memory.
struct Listed {
    steps: vec::IntoIter<RoutingStep>,
    rounded: u64,
}

impl Steps for Listed {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        Ok(self.steps.next().map(TraceStep::Counts))
    }

    fn report(&self, report: &mut ImportReport) {
        report.rounded_counts += self.rounded;
    }
}
