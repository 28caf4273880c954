//! All scenarios of a sweep that are left, in parallel, each kept when it is done.

use super::{Journal, Shard, Sweep, scenario};
use crate::error::Error;
use crate::session::{Session, interrupted};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Finished scenarios that may wait to be written.
const WAITING: usize = 1_024;
/// How often a slow sweep is forced to disk.
const PATIENCE: Duration = Duration::from_millis(500);

/// A finished scenario.
type Finished = (usize, Result<String, Error>);

/// Runs the scenarios of `shard` that `journal` lacks; returns whether the user stopped it.
///
/// # Errors
/// A journal that cannot be written, or something that should not happen in a scenario.
pub fn run(
    sweep: &Sweep,
    shard: Shard,
    journal: &mut Journal,
    session: &mut Session<'_>,
) -> Result<bool, Error> {
    let all: Vec<usize> = shard.indices(sweep.scenarios.len()).collect();
    let mut left: Vec<usize> = all
        .iter()
        .copied()
        .filter(|index| !journal.has(*index))
        .collect();
    // Those that share their routing one after the other, while it is kept.
    left.sort_by_cached_key(|&index| sweep.routing(index));
    let progress = session.progress_of(all.len() as u64, "scenario");
    progress.set_position((all.len() - left.len()) as u64);
    progress.reset_eta();
    let (sender, receiver) = sync_channel::<Finished>(WAITING);
    let stop = AtomicBool::new(false);
    let mut failed = None;
    std::thread::scope(|scope| {
        let (pool, left, stop) = (session.pool(), &left, &stop);
        let work = move || {
            let run = |sender: &mut SyncSender<Finished>, &index: &usize| {
                if !stop.load(Ordering::Relaxed) && !interrupted() {
                    // The receiver is gone only when the sweep has failed.
                    let _ = sender.send((index, scenario::run(sweep, index)));
                }
            };
            let each = || left.par_iter().with_max_len(1).for_each_with(sender, run);
            match pool {
                Some(pool) => pool.install(each),
                None => each(),
            }
        };
        let worker = scope.spawn(work);
        loop {
            let kept = match receiver.recv_timeout(PATIENCE) {
                Ok((index, Ok(rows))) => {
                    progress.inc(1);
                    journal.add(index, rows)
                }
                Ok((_, Err(Error::Interrupted))) => Ok(()),
                Ok((_, Err(error))) => Err(error),
                Err(RecvTimeoutError::Timeout) => journal.flush(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = kept {
                stop.store(true, Ordering::Relaxed);
                failed.get_or_insert(error);
            }
        }
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    });
    progress.finish_and_clear();
    journal.flush()?;
    match failed {
        Some(error) => Err(error),
        None => Ok(journal.len() < all.len()),
    }
}
