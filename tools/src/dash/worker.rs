//! The threads that send messages: keys, a file, a run of one's own, steps simulated again.

use super::laboratory::Laboratory;
use super::points::Points;
use super::state::{Effect, Msg};
use crate::error::Error;
use crate::play::play;
use crate::resolve::Resolved;
use crate::run_file::recorder::{Recorder, Sink};
use crate::run_file::{Block, Header, Reader, Writer};
use crate::session::{Session, Streams};
use ratatui::crossterm::event::{self, Event};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often a growing file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Blocks handed on at once: the first picture must not wait for a large file.
const BLOCKS: usize = 32;

/// Sends keys, the mouse and sizes.
pub fn keys(out: Sender<Msg>) {
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            let msg = match event {
                Event::Key(key) => Msg::Key(key),
                Event::Mouse(mouse) => Msg::Mouse(mouse),
                Event::Resize(columns, rows) => Msg::Resize(columns, rows),
                Event::FocusGained | Event::FocusLost | Event::Paste(_) => continue,
            };
            if out.send(msg).is_err() {
                return;
            }
        }
    });
}

/// Sends the run in the file at `path`; with `follow` also what is appended later.
pub fn file(path: PathBuf, follow: bool, out: Sender<Msg>) {
    thread::spawn(move || {
        let told = out.clone();
        let read = guarded(|| read_file(&path, follow, &out).map_err(|error| error.to_string()));
        if let Err(why) = read {
            let _ = told.send(Msg::Failed(why));
        }
    });
}

fn read_file(path: &Path, follow: bool, out: &Sender<Msg>) -> Result<(), Error> {
    while follow && !path.exists() {
        thread::sleep(POLL);
    }
    let mut reader = Reader::open(path)?;
    loop {
        let mut blocks = Vec::new();
        while blocks.len() < BLOCKS
            && let Some(block) = reader.next_block()?
        {
            blocks.push(block);
        }
        if !blocks.is_empty() {
            if out.send(Msg::Blocks(blocks)).is_err() {
                return Ok(());
            }
        } else if follow {
            // Also after the end: another run may take the place of this one.
            thread::sleep(POLL);
            if reader.is_replaced() {
                reader = Reader::open(path)?;
                let _ = out.send(Msg::Restart);
            }
        } else {
            return Ok(());
        }
    }
}

/// Sends the sweep in the file at `path`; with `follow` again whenever it grows.
pub fn sweep(path: PathBuf, follow: bool, out: Sender<Msg>) {
    thread::spawn(move || {
        let name = path.display().to_string();
        let mut known = None;
        loop {
            let length = std::fs::metadata(&path).map_or(0, |file| file.len());
            if known != Some(length) {
                known = Some(length);
                let read = std::fs::read_to_string(&path).map_err(|source| Error::Read {
                    path: name.clone(),
                    source,
                });
                let msg = match read.and_then(|text| Points::parse(&text, &name)) {
                    Ok(points) => Msg::Points(points),
                    Err(error) => Msg::Failed(error.to_string()),
                };
                if out.send(msg).is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            thread::sleep(POLL * 5);
        }
    });
}

/// Hands blocks to the dashboard.
struct Channel(Sender<Msg>);

impl Sink for Channel {
    fn take(&mut self, block: Block) -> Result<(), Error> {
        // A dashboard that is gone ends the run.
        self.0
            .send(Msg::Blocks(vec![block]))
            .map_err(|_| Error::Interrupted)
    }
}

/// Simulates the run of `resolved`, and sends it as it goes on; also to `writer`, if any.
pub fn simulation(resolved: Resolved, writer: Option<Writer>, out: Sender<Msg>) -> JoinHandle<()> {
    thread::spawn(move || {
        let told = out.clone();
        let work = || -> Result<(), Error> {
            let output = crate::settings::OutputSettings {
                quiet: true,
                ..resolved.study.output.clone()
            };
            let streams = Streams {
                stdout: &mut std::io::sink(),
                stderr: &mut std::io::sink(),
                watched: false,
            };
            let mut session = Session::new(streams, output)?;
            let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Channel(out))];
            if let Some(writer) = writer {
                sinks.push(Box::new(writer));
            }
            let model = resolved.model()?;
            let mut recorder = Recorder::new("dash", &resolved, false, sinks);
            play(&resolved, &*model, &mut session, &mut recorder)?;
            Ok(())
        };
        match guarded(|| work().map_err(|error| error.to_string())) {
            Ok(()) => {}
            Err(why) => {
                let _ = told.send(Msg::Failed(why));
            }
        }
    })
}

/// What the laboratory is asked.
type Request = (Effect, Arc<str>, Box<Header>);

/// Simulates steps again on a thread of its own.
#[derive(Debug)]
pub struct Simulator {
    requests: Sender<Request>,
}

impl Simulator {
    /// One that sends its results to `out`.
    pub fn start(out: Sender<Msg>) -> Simulator {
        let (requests, inbox) = channel();
        thread::spawn(move || serve(&inbox, &out));
        Simulator { requests }
    }

    /// Asks for what `effect` says, of the run with this header; `plan` is that of the step.
    pub fn ask(&self, effect: Effect, plan: Arc<str>, header: &Header) {
        // Where the thread is gone, the view goes on saying that it waits.
        let _ = self.requests.send((effect, plan, Box::new(header.clone())));
    }
}

fn serve(inbox: &Receiver<Request>, out: &Sender<Msg>) {
    let mut known: Option<(Header, Laboratory)> = None;
    while let Ok(mut request) = inbox.recv() {
        // Only the last of several settings tried in haste matters.
        while let (Effect::WhatIf { .. }, Ok(later)) = (&request.0, inbox.try_recv()) {
            request = later;
        }
        let (effect, plan, header) = request;
        let msg = answer(&mut known, &effect, &plan, &header);
        if out.send(msg).is_err() {
            return;
        }
    }
}

/// The answer to `effect`; the laboratory of the header is kept.
pub fn answer(
    known: &mut Option<(Header, Laboratory)>,
    effect: &Effect,
    plan: &str,
    header: &Header,
) -> Msg {
    let mut work = |use_it: &dyn Fn(&Laboratory) -> Result<Msg, String>| {
        guarded(|| {
            let at_hand = known.as_ref().is_some_and(|(of, _)| of == header);
            if !at_hand {
                *known = Some((header.clone(), Laboratory::new(header)?));
            }
            match known {
                Some((_, laboratory)) => use_it(laboratory),
                None => Err("no settings".into()),
            }
        })
    };
    match effect {
        Effect::Detail {
            step,
            strategy,
            ranks,
        } => {
            let (step, strategy) = (*step, *strategy);
            let found = work(&|laboratory| {
                let detail = laboratory.detail(step as usize, strategy.into(), plan, ranks)?;
                Ok(Msg::Detail(step, strategy, Ok(Arc::new(detail))))
            });
            found.unwrap_or_else(|why| Msg::Detail(step, strategy, Err(why)))
        }
        Effect::WhatIf {
            step,
            strategy,
            change,
        } => {
            let found = work(&|laboratory| {
                let answer = laboratory.what_if(*step as usize, (*strategy).into(), *change)?;
                Ok(Msg::WhatIf(Ok(Box::new(answer))))
            });
            found.unwrap_or_else(|why| Msg::WhatIf(Err(why)))
        }
        Effect::Quit | Effect::Save => Msg::Failed("not for the laboratory".into()),
    }
}

/// `work`; a panic in it is an error like others, so that the dashboard lives on.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(said(&*panic)))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("this is a mistake in moeplan, please report it: {said}")
}
