//! The dashboard: a run as it goes on, or as it was recorded, on a terminal.
//!
//! [`state`] is everything it knows, [`update`] changes it by messages, [`view`] draws it; both are
//! pure. [`terminal`] is the loop around them, [`worker`] the threads that send messages.

pub mod keymap;
mod laboratory;
pub mod points;
pub mod recording;
mod shot;
pub mod state;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;
pub mod whatif;
pub mod worker;

pub use laboratory::Laboratory;
pub use points::Points;
pub use shot::{screen, svg, text};
