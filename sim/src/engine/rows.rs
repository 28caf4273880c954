//! Ranks that are played together, and the groups that meet in collectives.

use super::PricedOp;
use crate::ir::{PerRank, Program, Scope};
use std::collections::BTreeMap;

/// The rows of a run: each stands for ranks that do the same at the same time.
pub(super) struct Rows {
    /// A rank of every row.
    pub(super) rank: Vec<usize>,
    /// Scopes of the program's collectives, and the rows that meet in each group of them.
    scopes: Vec<(Scope, Groups)>,
}

/// Groups of rows.
struct Groups {
    /// By row.
    of: Vec<u32>,
    /// Rows of each group, ascending.
    members: Vec<Vec<u32>>,
}

impl Rows {
    /// One row for all ranks, which are alike.
    pub(super) fn one(program: &Program) -> Rows {
        Rows::new(program, &[0], vec![0])
    }

    /// A row for every rank.
    pub(super) fn each(program: &Program) -> Rows {
        let rows: Vec<u32> = (0..program.world_size as u32).collect();
        Rows::new(program, &rows, (0..program.world_size).collect())
    }

    /// A row for ranks that no operation tells apart: they take the same time for everything, and in every
    /// collective they meet the same rows. By induction over events they are then always at the same point.
    pub(super) fn told_apart(program: &Program, priced: &[PricedOp]) -> Rows {
        let mut rows = Classes::new(program.world_size);
        for price in priced {
            if let PerRank::Each(times) = &price.alone {
                rows.split(times);
            }
        }
        let scopes = scopes(program);
        loop {
            let before = rows.first.len();
            for &scope in &scopes {
                rows.split_by_group(scope, program.world_size);
            }
            if rows.first.len() == before {
                break;
            }
        }
        Rows::new(program, &rows.of, rows.first)
    }

    /// Rows by rank, and a rank of each. One row for all needs no more than the first rank's.
    fn new(program: &Program, row_of: &[u32], rank: Vec<usize>) -> Rows {
        let groups = |scope: Scope| {
            let mut groups = Groups {
                of: vec![u32::MAX; rank.len()],
                members: Vec::new(),
            };
            for (row, &rank) in rank.iter().enumerate() {
                if groups.of[row] != u32::MAX {
                    continue;
                }
                let mut members: Vec<u32> = match row_of {
                    [only] => vec![*only],
                    _ => scope
                        .members(rank, program.world_size)
                        .map(|rank| row_of[rank])
                        .collect(),
                };
                members.sort_unstable();
                members.dedup();
                for &member in &members {
                    groups.of[member as usize] = groups.members.len() as u32;
                }
                groups.members.push(members);
            }
            (scope, groups)
        };
        let scopes = scopes(program).into_iter().map(groups).collect();
        Rows { rank, scopes }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rank.len()
    }

    /// The group of `row` in `scope`.
    pub(super) fn group(&self, scope: usize, row: usize) -> usize {
        self.scopes[scope].1.of[row] as usize
    }

    /// The rows of a group.
    pub(super) fn members(&self, scope: usize, group: usize) -> &[u32] {
        &self.scopes[scope].1.members[group]
    }

    /// Groups of a scope.
    pub(super) fn groups(&self, scope: usize) -> usize {
        self.scopes[scope].1.members.len()
    }

    /// The number of `scope` among the program's.
    pub(super) fn scope(&self, scope: Scope) -> usize {
        let found = self.scopes.iter().position(|(known, _)| *known == scope);
        found.expect("all scopes of the program are known")
    }
}

/// The distinct scopes of the collectives of `program`.
fn scopes(program: &Program) -> Vec<Scope> {
    let mut found = Vec::new();
    for op in &program.ops {
        if let Some(scope) = op.kind.scope(&program.traffic)
            && !found.contains(&scope)
        {
            found.push(scope);
        }
    }
    found
}

/// A partition of ranks that is made finer step by step.
struct Classes {
    /// By rank.
    of: Vec<u32>,
    /// The first rank of every class.
    first: Vec<usize>,
}

impl Classes {
    fn new(ranks: usize) -> Classes {
        Classes {
            of: vec![0; ranks],
            first: vec![0],
        }
    }

    /// Parts ranks of a class whose values differ.
    fn split<T: Ord + Copy>(&mut self, values: &[T]) {
        let mut parted: BTreeMap<(u32, T), u32> = BTreeMap::new();
        for (rank, &value) in values.iter().enumerate() {
            let class = self.of[rank];
            // Most stay with the first of their class, whose value is looked up in no map.
            if values[self.first[class as usize]] == value {
                continue;
            }
            self.of[rank] = *parted.entry((class, value)).or_insert_with(|| {
                self.first.push(rank);
                self.first.len() as u32 - 1
            });
        }
    }

    /// Parts ranks of a class that meet other classes in their groups.
    fn split_by_group(&mut self, scope: Scope, world: usize) {
        let mut known: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let mut met = vec![u32::MAX; world];
        for rank in 0..world {
            if met[rank] != u32::MAX {
                continue;
            }
            let mut classes: Vec<u32> = scope
                .members(rank, world)
                .map(|rank| self.of[rank])
                .collect();
            classes.sort_unstable();
            classes.dedup();
            let next = known.len() as u32;
            let kind = *known.entry(classes).or_insert(next);
            scope.members(rank, world).for_each(|rank| met[rank] = kind);
        }
        self.split(&met);
    }
}
