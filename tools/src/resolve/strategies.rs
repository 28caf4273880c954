//! Strategies: by name, from files, refined by flags.

use super::{Given, MAX_DROPLESS_GPUS, Planned, looks_like_a_file};
use crate::document::Document;
use crate::error::{Error, Place};
use crate::settings::StrategySettings;
use moeplan_sim::policy;
use moeplan_sim::spec::{Choice, Padding, ResolvedLayer, SpecError, Strategy};
use std::path::Path;

/// The strategies in order: named by flags, by the study file, or the command's own.
pub(super) fn planned(given: &Given, defaults: &[Planned]) -> Result<Vec<Planned>, Error> {
    let named = |name: &str, path: &Path, place: Place| -> Result<Planned, Error> {
        if let Some(strategy) = Strategy::named(name) {
            return Ok(Planned {
                strategy,
                cover_routing: false,
            });
        }
        if !looks_like_a_file(name, path) {
            let message = format!("expected fairseq, tutel or a file, found `{name}`");
            return Err(Error::input(place, message));
        }
        strategy_file(path)
    };
    let mut planned = Vec::new();
    let ladder = || {
        Strategy::ladder().into_iter().map(|strategy| Planned {
            strategy,
            cover_routing: false,
        })
    };
    if given.flags.ladder {
        planned.extend(ladder());
    } else if !given.strategies.is_empty() {
        for name in &given.strategies {
            planned.push(named(name, Path::new(name), Place::flag("--strategy"))?);
        }
    } else if given.file.ladder && !given.file.strategy.is_empty() {
        let place = given.place(&[], None, "ladder");
        let message = "expected either `ladder` or `[[strategy]]`, found both";
        return Err(Error::input(place, message));
    } else if given.file.ladder {
        planned.extend(ladder());
    } else if !given.file.strategy.is_empty() {
        for (index, settings) in given.file.strategy.iter().enumerate() {
            let base = match &settings.base {
                Some(name) => {
                    let table = format!("strategy[{index}]");
                    let place = given.place(&[&table], None, "base");
                    named(name, &given.beside(Path::new(name)), place)?
                }
                None => Planned {
                    strategy: Strategy::fairseq(),
                    cover_routing: false,
                },
            };
            planned.push(Planned {
                strategy: settings.over(base.strategy),
                cover_routing: settings.cover_routing.unwrap_or(base.cover_routing),
            });
        }
    } else {
        planned.extend(defaults.iter().cloned());
    }
    for planned in &mut planned {
        planned.strategy = given.refine.over(planned.strategy.clone());
        // The flag says what the file or a preset said otherwise.
        if given.flags.layer.capacity_factor.is_some() {
            planned.strategy.capacity_factor = None;
            planned.cover_routing = false;
        }
    }
    name_apart(&mut planned);
    Ok(planned)
}

/// Strategies of one name are numbered, so that a reader can tell them apart.
fn name_apart(planned: &mut [Planned]) {
    for index in 1..planned.len() {
        let (before, rest) = planned.split_at_mut(index);
        let name = rest[0].strategy.name.clone();
        let taken = |name: &str| before.iter().any(|other| other.strategy.name == name);
        let mut copy = 2;
        while taken(&rest[0].strategy.name) {
            rest[0].strategy.name = format!("{name} ({copy})");
            copy += 1;
        }
    }
}

fn strategy_file(path: &Path) -> Result<Planned, Error> {
    let document = Document::read(path)?;
    let settings: StrategySettings = document.parse()?;
    let mut base = match &settings.base {
        None => Strategy::fairseq(),
        Some(name) => Strategy::named(name).ok_or_else(|| {
            let message = format!("expected fairseq or tutel, found `{name}`");
            Error::input(document.find("base").unwrap_or_default(), message)
        })?,
    };
    if let Some(stem) = path.file_stem() {
        base.name = stem.to_string_lossy().into_owned();
    }
    Ok(Planned {
        strategy: settings.over(base),
        cover_routing: settings.cover_routing.unwrap_or(false),
    })
}

/// Checks a strategy against the layer it is to run.
pub(super) fn check(
    given: &Given,
    index: usize,
    strategy: &Strategy,
    layer: &ResolvedLayer,
) -> Result<(), Error> {
    let table = format!("strategy[{index}]");
    let blame = |error: &SpecError| given.blame(&[&table], None, error);
    if let Some(x) = strategy.capacity_factor
        && !(x.is_finite() && x.abs() <= 1e6)
    {
        return Err(blame(&SpecError::new(
            "capacity-factor",
            "a number from -1e6 to 1e6",
            x,
        )));
    }
    if strategy.padding == Padding::Dropless && layer.world_size > MAX_DROPLESS_GPUS {
        let expected = format!("at most {MAX_DROPLESS_GPUS} GPUs where routing is dropless");
        let error = SpecError::new("padding", expected, layer.world_size);
        return Err(blame(&error));
    }
    let degree = |field, choice| match choice {
        Choice::Fixed(degree) if !(1..=256).contains(&degree) => {
            Err(blame(&SpecError::new(field, "1 to 256 or auto", degree)))
        }
        Choice::Fixed(_) | Choice::Auto => Ok(()),
    };
    degree("pipeline-degree", strategy.pipeline_degree)?;
    if let Some(choice) = strategy.backward_degree {
        degree("backward-degree", choice)?;
    }
    policy::candidates(strategy, layer).map_err(|error| blame(&error))?;
    Ok(())
}
