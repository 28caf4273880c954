//! Names of buffers, of which a whole model has thousands.

/// `"hidden 3"` of `"hidden"` and chunk 3, not written anew for the chunks that most plans have.
macro_rules! of_chunk {
    ($name:literal, $chunk:expr) => {
        match $chunk {
            0 => std::borrow::Cow::Borrowed(concat!($name, " 0")),
            1 => std::borrow::Cow::Borrowed(concat!($name, " 1")),
            2 => std::borrow::Cow::Borrowed(concat!($name, " 2")),
            3 => std::borrow::Cow::Borrowed(concat!($name, " 3")),
            4 => std::borrow::Cow::Borrowed(concat!($name, " 4")),
            5 => std::borrow::Cow::Borrowed(concat!($name, " 5")),
            6 => std::borrow::Cow::Borrowed(concat!($name, " 6")),
            7 => std::borrow::Cow::Borrowed(concat!($name, " 7")),
            chunk => std::borrow::Cow::Owned(format!(concat!($name, " {}"), chunk)),
        }
    };
}
