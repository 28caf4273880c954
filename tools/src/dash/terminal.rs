//! The loop around the pure parts, and the terminal it borrows.

use super::shot::screen;
use super::state::{Effect, Msg, State};
use super::update::update;
use super::view::view;
use ratatui::Terminal;
use ratatui::backend::Backend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Time between frames while something moves.
const FRAME: Duration = Duration::from_millis(33);
/// How often a still dashboard looks whether it should end.
const IDLE: Duration = Duration::from_millis(200);

/// Whether the terminal is ours at the moment.
static BORROWED: AtomicBool = AtomicBool::new(false);

/// The terminal while the dashboard has it; given back when dropped, on a panic too.
#[derive(Debug)]
pub struct Borrowed(());

impl Borrowed {
    /// Takes the terminal.
    ///
    /// # Errors
    /// A terminal that cannot do it.
    pub fn take() -> io::Result<Borrowed> {
        enable_raw_mode()?;
        BORROWED.store(true, Ordering::SeqCst);
        let borrowed = Borrowed(());
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            EnableMouseCapture,
            cursor::Hide
        )?;
        Ok(borrowed)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if it is ours.
pub fn restore() {
    if BORROWED.swap(false, Ordering::SeqCst) {
        // Nobody is left to tell where this fails.
        let _ = execute!(
            io::stdout(),
            DisableMouseCapture,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = disable_raw_mode();
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// A message.
    Msg(Box<Msg>),
    /// None for as long as was waited.
    Nothing,
    /// None will come.
    Over,
}

/// Where messages come from.
pub trait Inbox {
    /// The next message, waited for at most `wait`.
    fn next(&mut self, wait: Duration) -> Next;
}

impl Inbox for Receiver<Msg> {
    fn next(&mut self, wait: Duration) -> Next {
        match self.recv_timeout(wait) {
            Ok(msg) => Next::Msg(Box::new(msg)),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Over,
        }
    }
}

/// What the loop cannot do itself.
pub trait World {
    /// Whether the process was asked to end.
    fn should_end(&self) -> bool;

    /// Starts what `effect` asks for; its result comes as a message. `Quit` and `Save` never come here.
    fn start(&mut self, effect: Effect, state: &State);

    /// Keeps the screen; returns the message that tells of it.
    fn save(&mut self, screen: &Buffer, state: &State) -> Msg;
}

/// Shows `state` on `terminal` until the user, the process or the messages end it.
///
/// # Errors
/// A terminal that cannot be drawn on.
pub fn run<B: Backend>(
    terminal: &mut Terminal<B>,
    state: &mut State,
    inbox: &mut dyn Inbox,
    world: &mut dyn World,
) -> Result<(), B::Error> {
    let mut drawn = Instant::now();
    let mut ticked = drawn;
    terminal.draw(|frame| view(state, frame))?;
    let mut stale = false;
    loop {
        let wait = match state.is_moving() || stale {
            true => FRAME.saturating_sub(drawn.elapsed()),
            false => IDLE,
        };
        let mut next = inbox.next(wait);
        // All that is there before the next frame.
        loop {
            match next {
                Next::Msg(msg) => {
                    let typed = matches!(*msg, Msg::Key(_) | Msg::Resize(..));
                    stale = true;
                    if apply(state, *msg, world) {
                        return Ok(());
                    }
                    if typed {
                        break;
                    }
                }
                Next::Nothing => break,
                Next::Over => return Ok(()),
            }
            if drawn.elapsed() >= FRAME {
                break;
            }
            next = inbox.next(Duration::ZERO);
        }
        if world.should_end() {
            return Ok(());
        }
        if state.is_moving() {
            let elapsed = ticked.elapsed();
            let before = state.cursor;
            if apply(state, Msg::Tick(elapsed), world) {
                return Ok(());
            }
            stale |= state.cursor != before || !state.is_moving();
        }
        ticked = Instant::now();
        if stale && drawn.elapsed() >= FRAME {
            // From its beginning, so that drawing does not slow the pace.
            drawn = Instant::now();
            terminal.draw(|frame| view(state, frame))?;
            stale = false;
        }
    }
}

/// Applies a message and what follows from it; returns whether it is the end.
fn apply(state: &mut State, msg: Msg, world: &mut dyn World) -> bool {
    match update(state, msg) {
        None => false,
        Some(Effect::Quit) => true,
        Some(Effect::Save) => {
            let msg = world.save(&screen(state), state);
            apply(state, msg, world)
        }
        Some(effect @ (Effect::Detail { .. } | Effect::WhatIf { .. })) => {
            world.start(effect, state);
            false
        }
    }
}
