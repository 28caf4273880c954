//! Where every row of a compiled layer lies in every buffer that holds rows.

use crate::ExecError;
use crate::cosine::CosineLayout;
use moeplan_sim::ir::{ExpertRows, Homes, OpKind, Pass, Program, rows_of_chunk};
use moeplan_sim::spec::Encode;
use moeplan_traces::RoutingStep;
use std::ops::Range;

/// Rows of one source, expert and row group that travel together; `slice` tells the r copies of
/// them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Rank whose tokens they are.
    pub source: usize,
    /// The expert.
    pub expert: usize,
    /// The row group, and so with `slice` the rank that computes them.
    pub group: usize,
    /// The slice of hidden channels.
    pub slice: usize,
}

/// A piece's place in a buffer, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub piece: Piece,
    /// First row in the buffer.
    pub at: usize,
    /// Rows.
    pub rows: usize,
}

/// One cut of the rows: chunk `index` of `degree`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chunk {
    /// From 0.
    pub index: usize,
    /// Of how many.
    pub degree: usize,
}

/// Sizes and the routing of a compiled layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// W.
    pub world: usize,
    /// T.
    pub tokens: usize,
    /// D.
    pub model_dim: usize,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// Of a cosine gate.
    pub cosine: Option<CosineLayout>,
    /// H of a rank's slice.
    pub hidden: usize,
    /// Which rank computes what.
    pub homes: Homes,
    /// r.
    pub adaptive_r: usize,
    /// Copies an expert accepts from one rank.
    pub limit: usize,
    /// C, slots of an expert; `None` without padding.
    pub capacity: Option<usize>,
    /// Whether received rows lie source by source (else expert by expert).
    pub conventional: bool,
    /// Dense or sparse.
    pub encode: Encode,
    /// d of the forward pass.
    pub forward_degree: usize,
    /// d of the backward pass; 0 where there is none.
    pub backward_degree: usize,
    /// Copies kept, `[source * E + expert]`.
    pub kept: Vec<usize>,
}

impl Geometry {
    /// Reads the sizes off `program`, which was compiled for `routing`.
    ///
    /// # Errors
    /// A program of something else than a whole layer, or of another routing step.
    pub fn new(program: &Program, routing: &RoutingStep) -> Result<Geometry, ExecError> {
        let lacks = |what: &str| ExecError::Disagrees(format!("expected a layer, found {what}"));
        let placement = program
            .placement
            .ok_or_else(|| lacks("no placement of experts"))?;
        let degree = |pass| {
            let of_pass = program.ops.iter().filter(|op| op.pass == pass);
            let chunks = of_pass.filter_map(|op| match op.kind {
                OpKind::ExpertGemm { .. } => Some(op.chunk as usize + 1),
                _ => None,
            });
            chunks.max().unwrap_or(0)
        };
        let mut gate = None;
        let mut slots = None;
        let mut expert = None;
        for op in program.ops.iter().rev() {
            match &op.kind {
                OpKind::Gate {
                    tokens,
                    experts,
                    model_dim,
                    top_k,
                    gate: kind,
                    ..
                } => {
                    gate = Some((*tokens, *experts, *model_dim, *top_k, *kind));
                }
                OpKind::Encode {
                    slots: found,
                    encode,
                    ..
                } => slots = Some((found, *encode)),
                OpKind::ExpertGemm {
                    rows, hidden_dim, ..
                } => expert = Some((rows, *hidden_dim)),
                OpKind::CapacitySync
                | OpKind::Decode { .. }
                | OpKind::ScoreGradient { .. }
                | OpKind::Exchange { .. }
                | OpKind::Elementwise { .. }
                | OpKind::AllGather { .. }
                | OpKind::ReduceScatter { .. }
                | OpKind::AllReduce { .. }
                | OpKind::Model { .. } => {}
            }
        }
        let (tokens, experts, model_dim, top_k, kind) = gate.ok_or_else(|| lacks("no gate"))?;
        let (slots, encode) = slots.ok_or_else(|| lacks("no encode"))?;
        let (rows, hidden) = expert.ok_or_else(|| lacks("no expert"))?;
        let (capacity, conventional) = match rows {
            ExpertRows::Padded { blocks, .. } => {
                (Some((*slots.get(0) / experts) as usize), *blocks > 1)
            }
            ExpertRows::Grouped { .. } => (None, false),
        };
        let shape = (program.world_size, experts as usize);
        if (routing.source_ranks(), routing.num_experts()) != shape {
            let found = format!(
                "{} ranks, {} experts",
                routing.source_ranks(),
                routing.num_experts()
            );
            let expected = format!("{} ranks, {} experts", shape.0, shape.1);
            return Err(ExecError::input("routing", expected, found));
        }
        let limit = usize::try_from(placement.limit).unwrap_or(usize::MAX);
        Ok(Geometry {
            world: program.world_size,
            tokens: tokens as usize,
            model_dim: model_dim as usize,
            experts: experts as usize,
            top_k: top_k as usize,
            cosine: CosineLayout::new(kind, tokens as usize, model_dim as usize, experts as usize),
            hidden: hidden as usize,
            homes: placement.homes,
            adaptive_r: placement.adaptive_r as usize,
            limit,
            capacity,
            conventional,
            encode,
            forward_degree: degree(Pass::Forward),
            backward_degree: degree(Pass::Backward),
            kept: routing
                .all_counts()
                .iter()
                .map(|&count| (count as usize).min(limit))
                .collect(),
        })
    }

    /// Degree of a pass.
    pub fn degree(&self, pass: Pass) -> usize {
        match pass {
            Pass::Forward => self.forward_degree,
            Pass::Backward => self.backward_degree,
        }
    }

    /// FLOPs of the gate's products; the backward pass has two for each.
    pub fn gate_flops(&self) -> u64 {
        let products = match self.cosine {
            None => self.model_dim * self.experts,
            Some(gate) => (self.model_dim + self.experts) * gate.channels,
        };
        2 * (self.tokens * products) as u64
    }

    /// Slices of hidden channels that rows are repeated for.
    pub fn slices(&self) -> usize {
        self.adaptive_r.max(1)
    }

    /// Row groups of an expert; rows that stay where they are form one.
    pub fn groups(&self) -> usize {
        if self.adaptive_r == 0 {
            1
        } else {
            self.homes.groups() as usize
        }
    }

    /// Experts a rank computes.
    pub fn local_experts(&self) -> usize {
        if self.adaptive_r == 0 {
            self.experts
        } else {
            self.homes.local_experts as usize
        }
    }

    /// First expert, slice and row group that `rank` computes.
    pub fn part_of(&self, rank: usize) -> (usize, usize, usize) {
        if self.adaptive_r == 0 {
            return (0, 0, 0);
        }
        let shared = self.homes.sharded_count as usize;
        if shared == 1 {
            return (rank * self.homes.local_experts as usize, 0, 0);
        }
        let place = rank % shared;
        (rank / shared, place / self.groups(), place % self.groups())
    }

    /// The rank that computes `piece`.
    pub fn home(&self, piece: &Piece) -> usize {
        if self.adaptive_r == 0 {
            return piece.source;
        }
        let (expert, slice, group) = (piece.expert as u64, piece.slice as u64, piece.group as u64);
        self.homes.rank(expert, slice, group) as usize
    }

    /// Rows of a source for an expert in a row group, over all chunks.
    pub fn rows(&self, source: usize, expert: usize, group: usize) -> usize {
        match self.capacity {
            Some(capacity) => capacity / self.groups(),
            None if self.adaptive_r == 0
                || self.homes.group_of_source(source as u64) as usize == group =>
            {
                self.kept[source * self.experts + expert]
            }
            None => 0,
        }
    }

    /// Which of those rows are in `chunk`.
    pub fn cut(&self, source: usize, expert: usize, group: usize, chunk: Chunk) -> Range<usize> {
        let rows = self.rows(source, expert, group) as u64;
        let turn = (source + expert) as u64;
        let bounds = rows_of_chunk(rows, chunk.index as u64, chunk.degree as u64, turn);
        bounds.start as usize..bounds.end as usize
    }

    /// The dispatch or combine buffer of `rank`: expert by expert, each slice by slice, each group
    /// by group, which is the order of the ranks that compute them. `slices` 1 is the buffer before
    /// it is repeated.
    pub fn sent(&self, rank: usize, chunk: Chunk, slices: usize) -> Vec<Placed> {
        let all = (0..self.experts).flat_map(|expert| {
            (0..slices).flat_map(move |slice| {
                (0..self.groups()).map(move |group| Piece {
                    source: rank,
                    expert,
                    group,
                    slice,
                })
            })
        });
        self.place(all, chunk)
    }

    /// What `rank` computes on, in the layout of the plan: source by source or expert by expert.
    pub fn received(&self, rank: usize, chunk: Chunk) -> Vec<Placed> {
        let (first, slice, group) = self.part_of(rank);
        let experts = first..first + self.local_experts();
        let sources = if self.adaptive_r == 0 {
            rank..rank + 1
        } else {
            0..self.world
        };
        let piece = |source, expert| Piece {
            source,
            expert,
            group,
            slice,
        };
        if self.conventional {
            let all =
                sources.flat_map(|source| experts.clone().map(move |expert| piece(source, expert)));
            self.place(all, chunk)
        } else {
            let all =
                experts.flat_map(|expert| sources.clone().map(move |source| piece(source, expert)));
            self.place(all, chunk)
        }
    }

    /// Places pieces one after the other; empty ones are left out.
    fn place(&self, pieces: impl Iterator<Item = Piece>, chunk: Chunk) -> Vec<Placed> {
        let mut at = 0;
        let mut placed = Vec::new();
        for piece in pieces {
            let rows = self
                .cut(piece.source, piece.expert, piece.group, chunk)
                .len();
            if rows > 0 {
                placed.push(Placed { piece, at, rows });
                at += rows;
            }
        }
        placed
    }
}

/// Rows of all pieces.
pub fn total(placed: &[Placed]) -> usize {
    placed.iter().map(|placed| placed.rows).sum()
}

/// From an expert and a location in its queue to a row of the dispatch buffer before repetition.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotMap {
    limit: usize,
    groups: usize,
    degree: usize,
    /// Rows of each (expert, group).
    rows: Vec<usize>,
    /// Which of them is the first of each (chunk, expert, group).
    firsts: Vec<usize>,
    /// Where that one lies in the chunk.
    starts: Vec<usize>,
    experts: usize,
    padded: bool,
    own_group: usize,
}

impl SlotMap {
    /// The map of `rank` at `degree` chunks.
    pub fn new(geometry: &Geometry, rank: usize, degree: usize) -> SlotMap {
        let (experts, groups) = (geometry.experts, geometry.groups());
        let mut starts = Vec::with_capacity(degree * experts * groups);
        let mut firsts = Vec::with_capacity(degree * experts * groups);
        for index in 0..degree {
            let mut at = 0;
            for expert in 0..experts {
                for group in 0..groups {
                    let cut = geometry.cut(rank, expert, group, Chunk { index, degree });
                    starts.push(at);
                    firsts.push(cut.start);
                    at += cut.len();
                }
            }
        }
        let cells = (0..experts).flat_map(|expert| (0..groups).map(move |group| (expert, group)));
        SlotMap {
            limit: geometry.limit,
            groups,
            degree,
            rows: cells
                .map(|(expert, group)| geometry.rows(rank, expert, group))
                .collect(),
            firsts,
            starts,
            experts,
            padded: geometry.capacity.is_some(),
            own_group: match geometry.adaptive_r {
                0 => 0,
                _ => geometry.homes.group_of_source(rank as u64) as usize,
            },
        }
    }

    /// Chunk and row of the copy at `location` of `expert`; `None` where it is dropped.
    pub fn find(&self, expert: usize, location: usize) -> Option<(usize, usize)> {
        if location >= self.limit {
            return None;
        }
        let first = expert * self.groups;
        let (group, index) = match self.padded {
            true => (location / self.rows[first], location % self.rows[first]),
            false => (self.own_group, location),
        };
        let rows = self.rows[first + group];
        if index >= rows {
            return None;
        }
        let cell = |chunk: usize| (chunk * self.experts + expert) * self.groups + group;
        // The last chunk that starts at the row or before it: empty ones start where the next does.
        let chunk = (1..self.degree)
            .take_while(|&chunk| self.firsts[cell(chunk)] <= index)
            .last()
            .unwrap_or(0);
        let cell = cell(chunk);
        Some((chunk, self.starts[cell] + index - self.firsts[cell]))
    }
}

/// A [`SlotMap`] as numbers, for a device that has its own copy of [`SlotMap::find`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotTables<'a> {
    /// Copies an expert takes.
    pub(crate) limit: usize,
    /// Row groups of an expert.
    pub(crate) groups: usize,
    /// Chunks.
    pub(crate) degree: usize,
    /// (E, groups): slots.
    pub(crate) rows: &'a [usize],
    /// (degree, E, groups): first of them in the chunk.
    pub(crate) firsts: &'a [usize],
    /// (degree, E, groups): where it lies in the chunk.
    pub(crate) starts: &'a [usize],
    /// The only group in use; `None` where groups fill one after the other.
    pub(crate) own_group: Option<usize>,
}

impl SlotMap {
    /// Its numbers.
    pub(crate) fn tables(&self) -> SlotTables<'_> {
        SlotTables {
            limit: self.limit,
            groups: self.groups,
            degree: self.degree,
            rows: &self.rows,
            firsts: &self.firsts,
            starts: &self.starts,
            own_group: (!self.padded).then_some(self.own_group),
        }
    }
}
