//! Arrays of counts or of expert ids, whatever file they come from.

use std::io::Read;

use super::assemble::{Rows, assemble};
use super::table::Row;
use super::tokens::{MAX_CHOICES, MAX_EXPERT, are_different};
use super::{Axis, ImportOptions, ImportReport, Imported, Sizes, Steps, names};
use crate::error::{Place, TraceError};
use crate::format::TraceStep;
use crate::input::Source;
use crate::routing::{MAX_CELLS, RoutingStep};

/// Type of the elements of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// Signed integers of so many bytes.
    Signed(usize),
    /// Unsigned integers of so many bytes.
    Unsigned(usize),
    /// Floating-point numbers of 4 or 8 bytes.
    Float(usize),
}

impl Element {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Signed(bytes) | Self::Unsigned(bytes) | Self::Float(bytes) => bytes,
        }
    }
}

/// A row-major array that is read from the start.
pub(super) struct Array {
    /// Its name in an archive.
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) big_endian: bool,
    pub(super) shape: Vec<usize>,
    /// At least the bytes of all elements, unless the file is damaged.
    pub(super) data: Box<dyn Read + Send>,
}

/// Builds the importer of an array. `open` starts over at its first element.
pub(super) fn read(
    layout: &str,
    source: &Source,
    options: &ImportOptions,
    open: impl Fn() -> Result<Array, TraceError>,
) -> Result<Imported, TraceError> {
    let array = open()?;
    let mut file = source.place();
    if !array.name.is_empty() {
        file = file.field(array.name.as_str());
    }
    let axes = axes_of(&array, options, &file)?;
    let layout = format!("{layout}, {}", describe(&array.shape, &axes));
    if axes.contains(&Axis::Choice) {
        return assemble(&layout, file.clone(), options, || {
            TokenArray::new(open()?, &axes, file.clone(), options)
        });
    }
    let counts = CountArray::new(array, &axes, file, options)?;
    let mut assumed = Vec::new();
    if options.top_k.is_none() {
        assumed.push(names::TOP_K_ASSUMED.into());
    }
    if counts.extents.ranks == 1 && !axes.contains(&Axis::Rank) {
        assumed.push("one source rank: the file does not tell them apart".into());
    }
    let sizes = Sizes {
        experts: counts.experts,
        top_k: counts.top_k,
        source_ranks: counts.extents.ranks,
        tokens_per_rank: None,
    };
    Ok(Imported::new(&layout, sizes, assumed, counts))
}

fn describe(shape: &[usize], axes: &[Axis]) -> String {
    let name = |axis: Axis| Axis::NAMES.into_iter().find(|&(_, known)| known == axis);
    let parts = axes.iter().zip(shape).map(|(&axis, extent)| {
        let name = name(axis).map_or("", |(name, _)| name);
        format!("{extent} {name}s")
    });
    parts.collect::<Vec<_>>().join(" x ")
}

/// What the axes are: what the user says, or what arrays of this name and depth usually are.
fn axes_of(array: &Array, options: &ImportOptions, file: &Place) -> Result<Vec<Axis>, TraceError> {
    use Axis::{Choice, Expert, Layer, Rank, Step, Token};
    let depth = array.shape.len();
    let (ids, counts) = (
        names::is(&array.name, names::IDS),
        names::is(&array.name, names::COUNTS),
    );
    let by_layer = array.name == "topk_ids_of_layer";
    let axes = match (&options.axes, depth) {
        (Some(axes), _) => axes.clone(),
        (None, 2) if ids => vec![Token, Choice],
        (None, 3) if by_layer => vec![Layer, Token, Choice],
        (None, 3) if ids => vec![Token, Layer, Choice],
        (None, 4) if ids => vec![Step, Layer, Token, Choice],
        (None, 2) if counts => vec![Layer, Expert],
        (None, 2) => vec![Rank, Expert],
        (None, 3) => vec![Step, Layer, Expert],
        (None, 4) => vec![Step, Layer, Rank, Expert],
        (None, _) => {
            return Err(TraceError::invalid(
                file.clone().field("shape"),
                "2 to 4 axes (--axes says what they are)",
                format!("{:?}", array.shape),
            ));
        }
    };
    let place = || file.clone().field("axes");
    let said = format!("{axes:?} of shape {:?}", array.shape);
    let inner = |axis: &Axis| matches!(axis, Choice | Expert);
    let repeated = (1..axes.len()).any(|index| axes[..index].contains(&axes[index]));
    let problem = if axes.len() != depth {
        Some(format!("{depth} axes"))
    } else if repeated {
        Some("every axis once".into())
    } else if !axes.last().is_some_and(inner) || axes.iter().filter(|axis| inner(axis)).count() > 1
    {
        Some("`expert` or `choice` as the last axis".into())
    } else if axes.contains(&Choice) != axes.contains(&Token) {
        Some("`token` and `choice` together".into())
    } else if axes.iter().skip(1).any(|&axis| axis == Step) {
        Some("`step` as the first axis, if at all".into())
    } else if array.shape.contains(&0) {
        Some("no axis of length 0".into())
    } else {
        None
    };
    match problem {
        Some(expected) => Err(TraceError::invalid(place(), expected, said)),
        None => Ok(axes),
    }
}

/// Lengths of the axes of one step, and how many elements lie between neighbours on them.
#[derive(Debug, Clone, Copy)]
struct Extents {
    steps: usize,
    layers: usize,
    ranks: usize,
    tokens: usize,
    inner: usize,
    layer_stride: usize,
    rank_stride: usize,
    token_stride: usize,
    /// Elements of one step.
    cells: usize,
}

impl Extents {
    fn of(shape: &[usize], axes: &[Axis], file: &Place) -> Result<Self, TraceError> {
        let mut extents = Self {
            steps: 1,
            layers: 1,
            ranks: 1,
            tokens: 1,
            inner: 1,
            layer_stride: 0,
            rank_stride: 0,
            token_stride: 0,
            cells: 1,
        };
        for (&axis, &extent) in axes.iter().zip(shape).rev() {
            let stride = extents.cells;
            match axis {
                Axis::Step => {
                    extents.steps = extent;
                    continue;
                }
                Axis::Layer => (extents.layers, extents.layer_stride) = (extent, stride),
                Axis::Rank => (extents.ranks, extents.rank_stride) = (extent, stride),
                Axis::Token => (extents.tokens, extents.token_stride) = (extent, stride),
                Axis::Choice | Axis::Expert => extents.inner = extent,
            }
            let cells = extents.cells.checked_mul(extent);
            match cells.filter(|&cells| cells <= MAX_CELLS) {
                Some(cells) => extents.cells = cells,
                None => {
                    return Err(TraceError::invalid(
                        file.clone().field("shape"),
                        format!("at most {MAX_CELLS} elements in a step"),
                        format!("{shape:?}"),
                    ));
                }
            }
        }
        Ok(extents)
    }
}

/// Elements of an array, a step (or a token) at a time.
struct Chunks {
    data: Box<dyn Read + Send>,
    element: Element,
    big_endian: bool,
    bytes: Vec<u8>,
    file: Place,
}

impl Chunks {
    fn new(array: Array, file: Place) -> Self {
        Self {
            data: array.data,
            element: array.element,
            big_endian: array.big_endian,
            bytes: Vec::new(),
            file,
        }
    }

    /// Reads the next `cells` elements.
    fn advance(&mut self, cells: usize) -> Result<(), TraceError> {
        let wanted = cells * self.element.bytes();
        self.bytes.clear();
        let mut limited = (&mut self.data).take(wanted as u64);
        let read = limited.read_to_end(&mut self.bytes);
        read.map_err(|source| TraceError::reading(self.file.clone(), source))?;
        if self.bytes.len() == wanted {
            return Ok(());
        }
        Err(TraceError::invalid(
            self.file.clone(),
            format!("{wanted} more bytes of the array (is the file cut off?)"),
            format!("{}", self.bytes.len()),
        ))
    }

    /// Appends `cells` elements from `at` on. On failure returns which one is no count.
    fn append(&self, at: usize, cells: usize, to: &mut Vec<u32>) -> Result<(), usize> {
        let size = self.element.bytes();
        let bytes = &self.bytes[at * size..(at + cells) * size];
        let before = to.len();
        let fits = match (self.element, self.big_endian) {
            (Element::Signed(4), false) => {
                let mut signs = 0;
                to.extend(bytes.chunks_exact(4).map(|four| {
                    let value = i32::from_le_bytes(four.try_into().unwrap_or_default());
                    signs |= value;
                    value as u32
                }));
                signs >= 0
            }
            (Element::Signed(8), false) => {
                let mut high = 0;
                to.extend(bytes.chunks_exact(8).map(|eight| {
                    let value = u64::from_le_bytes(eight.try_into().unwrap_or_default());
                    high |= value >> 32;
                    value as u32
                }));
                high == 0
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        to.truncate(before);
        for index in 0..cells {
            match u32::try_from(self.value(at + index)) {
                Ok(value) => to.push(value),
                Err(_) => return Err(index),
            }
        }
        Ok(())
    }

    /// An element as a whole number; -1 for whatever is none, or does not fit.
    fn value(&self, at: usize) -> i64 {
        let size = self.element.bytes();
        let mut raw = [0_u8; 8];
        let bytes = &self.bytes[at * size..(at + 1) * size];
        for (index, &byte) in bytes.iter().enumerate() {
            raw[if self.big_endian {
                size - 1 - index
            } else {
                index
            }] = byte;
        }
        let unsigned = u64::from_le_bytes(raw);
        let whole = |value: f64| {
            let fits = value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value);
            if fits { value as i64 } else { -1 }
        };
        match self.element {
            Element::Unsigned(_) => i64::try_from(unsigned).unwrap_or(-1),
            Element::Signed(bytes) => {
                let unused = 64 - 8 * bytes as u32;
                ((unsigned << unused) as i64) >> unused
            }
            Element::Float(4) => whole(f32::from_bits(unsigned as u32).into()),
            Element::Float(_) => whole(f64::from_bits(unsigned)),
        }
    }

    /// An element as it is, for messages.
    fn show(&self, at: usize) -> String {
        let size = self.element.bytes();
        let bytes = &self.bytes[at * size..(at + 1) * size];
        match (self.element, self.big_endian) {
            (Element::Float(4), false) => {
                f32::from_le_bytes(bytes.try_into().unwrap_or_default()).to_string()
            }
            (Element::Float(8), false) => {
                f64::from_le_bytes(bytes.try_into().unwrap_or_default()).to_string()
            }
            (Element::Unsigned(8), false) => {
                u64::from_le_bytes(bytes.try_into().unwrap_or_default()).to_string()
            }
            _ => self.value(at).to_string(),
        }
    }

    /// Fails where elements are left.
    fn finish(&mut self) -> Result<(), TraceError> {
        let mut more = [0];
        match self.data.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(TraceError::invalid(
                self.file.clone(),
                "nothing after the array",
                "more bytes",
            )),
            Err(source) => Err(TraceError::reading(self.file.clone(), source)),
        }
    }
}

/// Counts, step by step and layer by layer.
struct CountArray {
    chunks: Chunks,
    extents: Extents,
    experts: usize,
    top_k: u32,
    divisor: u32,
    step: usize,
    layer: usize,
    rounded: u64,
}

impl CountArray {
    fn new(
        array: Array,
        axes: &[Axis],
        file: Place,
        options: &ImportOptions,
    ) -> Result<Self, TraceError> {
        let extents = Extents::of(&array.shape, axes, &file)?;
        let experts = options.experts.unwrap_or(extents.inner);
        let cells = extents.ranks.checked_mul(experts);
        if experts < extents.inner || cells.is_none_or(|cells| cells > MAX_CELLS) {
            return Err(TraceError::invalid(
                file.field("experts"),
                format!("at least {}, the columns of the array", extents.inner),
                experts.to_string(),
            ));
        }
        Ok(Self {
            chunks: Chunks::new(array, file),
            extents,
            experts,
            top_k: options.top_k.unwrap_or(1),
            divisor: options.dp_size.unwrap_or(1),
            step: 0,
            layer: 0,
            rounded: 0,
        })
    }

    fn read_layer(&mut self) -> Result<RoutingStep, TraceError> {
        let extents = self.extents;
        let mut counts = Vec::with_capacity(extents.ranks * self.experts);
        for rank in 0..extents.ranks {
            let at = self.layer * extents.layer_stride + rank * extents.rank_stride;
            let appended = self.chunks.append(at, extents.inner, &mut counts);
            appended.map_err(|expert| {
                let (step, layer) = (self.step, self.layer);
                let field = format!("step {step}, layer {layer}, rank {rank}, expert {expert}");
                TraceError::invalid(
                    self.chunks.file.clone().field(field),
                    format!("a whole number from 0 to {}", u32::MAX),
                    self.chunks.show(at + expert),
                )
            })?;
            counts.resize((rank + 1) * self.experts, 0);
        }
        if self.divisor > 1 {
            self.rounded += divide(&mut counts, self.divisor);
        }
        let (step, layer) = (self.step as u64, self.layer as u32);
        RoutingStep::new(step, layer, self.top_k, self.experts, counts).map_err(|error| {
            let field = error.place().field.clone().unwrap_or_default();
            let field = format!("step {step}, layer {layer}: {field}");
            error.at(self.chunks.file.clone().field(field))
        })
    }
}

/// Divides counts, rounding to the nearest; returns how many did not divide evenly.
pub(super) fn divide(counts: &mut [u32], divisor: u32) -> u64 {
    let mut rounded = 0;
    for count in counts {
        rounded += u64::from(!count.is_multiple_of(divisor));
        *count = ((u64::from(*count) + u64::from(divisor / 2)) / u64::from(divisor)) as u32;
    }
    rounded
}

impl Steps for CountArray {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.step == self.extents.steps {
            return Ok(None);
        }
        if self.layer == 0 {
            self.chunks.advance(self.extents.cells)?;
        }
        let built = self.read_layer()?;
        self.layer += 1;
        if self.layer == self.extents.layers {
            self.layer = 0;
            self.step += 1;
            if self.step == self.extents.steps {
                self.chunks.finish()?;
            }
        }
        Ok(Some(TraceStep::Counts(built)))
    }

    fn report(&self, report: &mut ImportReport) {
        report.rounded_counts += self.rounded;
    }
}

/// Expert ids, token by token. Negative ids fill up what was not chosen.
struct TokenArray {
    chunks: Chunks,
    extents: Extents,
    stepped: bool,
    ranked: bool,
    /// Whether a chunk is a token rather than a step.
    by_token: bool,
    top_k: Option<usize>,
    exact: bool,
    step: usize,
    /// Of the tokens of all ranks in the step.
    token: usize,
    padding: u64,
}

impl TokenArray {
    fn new(
        array: Array,
        axes: &[Axis],
        file: Place,
        options: &ImportOptions,
    ) -> Result<Self, TraceError> {
        let by_token = axes.first() == Some(&Axis::Token);
        let mut shape = array.shape.clone();
        let tokens = shape[0];
        if by_token {
            // One step is one token then.
            shape[0] = 1;
        }
        let mut extents = Extents::of(&shape, axes, &file)?;
        if by_token {
            extents.steps = tokens;
        }
        if extents.inner > MAX_CHOICES {
            return Err(TraceError::invalid(
                file.field("shape"),
                format!("at most {MAX_CHOICES} choices (--axes says what the axes are)"),
                extents.inner.to_string(),
            ));
        }
        Ok(Self {
            chunks: Chunks::new(array, file),
            extents,
            stepped: axes.contains(&Axis::Step),
            ranked: axes.contains(&Axis::Rank),
            by_token,
            top_k: options.top_k.map(|top_k| top_k as usize),
            exact: options.top_k.is_none(),
            step: 0,
            token: 0,
            padding: 0,
        })
    }

    /// Reads the token at hand; false where it is padding.
    fn read_token(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        let extents = self.extents;
        let (rank, token) = (self.token / extents.tokens, self.token % extents.tokens);
        row.clear();
        row.layers.clear();
        row.step = self.stepped.then_some(self.step as u64);
        row.rank = self.ranked.then_some(rank as u32);
        for layer in 0..extents.layers {
            let at = layer * extents.layer_stride
                + rank * extents.rank_stride
                + token * extents.token_stride;
            let before = row.ids.len();
            let values = (at..at + extents.inner).map(|at| self.chunks.value(at));
            row.ids.extend(
                values
                    .take_while(|&id| id >= 0)
                    .map(|id| u32::try_from(id).unwrap_or(u32::MAX)),
            );
            let found = row.ids.len() - before;
            if found == 0 {
                continue;
            }
            let wanted = *self.top_k.get_or_insert(found);
            let ids = &row.ids[before..];
            let in_range = ids.iter().all(|&id| u64::from(id) <= MAX_EXPERT);
            if found < wanted || (self.exact && found > wanted) || !in_range || !are_different(ids)
            {
                let field = format!("step {}, token {token}, layer {layer}", self.step);
                return Err(TraceError::invalid(
                    self.chunks.file.clone().field(field),
                    format!("{wanted} different expert ids from 0 to {MAX_EXPERT}"),
                    format!("{ids:?}"),
                ));
            }
            row.ids.truncate(before + wanted);
            row.layers.push(layer as u32);
        }
        Ok(!row.layers.is_empty())
    }
}

impl Rows for TokenArray {
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        loop {
            if self.step == self.extents.steps {
                self.chunks.finish()?;
                return Ok(false);
            }
            if self.token == 0 {
                self.chunks.advance(self.extents.cells)?;
            }
            let real = self.read_token(row)?;
            self.token += 1;
            if self.token == self.extents.tokens * self.extents.ranks {
                self.token = 0;
                self.step += 1;
            }
            if real {
                return Ok(true);
            }
            self.padding += 1;
        }
    }

    fn place(&self) -> Place {
        let what = if self.by_token { "token" } else { "step" };
        self.chunks
            .file
            .clone()
            .field(format!("{what} {}", self.step))
    }

    fn report(&self, report: &mut ImportReport) {
        report.skipped_lines += self.padding;
    }
}
