//! Columns of numbers as bytes: small differences are small bytes, which zstd then packs.

/// What a reader finds where something else should be.
pub(super) type Damage = &'static str;

/// Most nanoseconds (two years), bytes (64 PiB) and copies.
const MOST: u64 = 1 << 56;

/// Columns being written.
#[derive(Debug, Default)]
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    /// A number, seven bits a byte.
    pub(super) fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number, eight bytes.
    pub(super) fn f64(&mut self, value: f64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A text.
    pub(super) fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    /// How many, then each as its difference from the one before.
    pub(super) fn column(&mut self, values: impl ExactSizeIterator<Item = u64>) {
        self.u64(values.len() as u64);
        let mut before = 0u64;
        for value in values {
            let difference = value.wrapping_sub(before) as i64;
            // Zigzag: small falls are as small as small rises.
            self.u64(((difference << 1) ^ (difference >> 63)) as u64);
            before = value;
        }
    }

    /// How many, then each.
    pub(super) fn reals(&mut self, values: impl ExactSizeIterator<Item = f64>) {
        self.u64(values.len() as u64);
        for value in values {
            self.f64(value);
        }
    }
}

/// Columns being read. Nothing is allocated beyond what the bytes at hand can fill.
#[derive(Debug)]
pub(super) struct In<'a>(pub(super) &'a [u8]);

impl In<'_> {
    pub(super) fn u64(&mut self) -> Result<u64, Damage> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number of 64 bits")
    }

    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Damage> {
        T::try_from(self.u64()?).map_err(|_| "a smaller number")
    }

    pub(super) fn f64(&mut self) -> Result<f64, Damage> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or("a real number")?;
        self.0 = rest;
        Ok(f64::from_le_bytes(*bytes))
    }

    /// How many items of at least one byte follow.
    pub(super) fn count(&mut self) -> Result<usize, Damage> {
        let count = usize::try_from(self.u64()?).map_err(|_| "a count")?;
        match count <= self.0.len() {
            true => Ok(count),
            false => Err("no more items than bytes"),
        }
    }

    pub(super) fn text(&mut self) -> Result<&str, Damage> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| "UTF-8 text")
    }

    pub(super) fn column(&mut self) -> Result<Vec<u64>, Damage> {
        let count = self.count()?;
        let mut values = Vec::with_capacity(count);
        let mut value = 0u64;
        for _ in 0..count {
            let zigzag = self.u64()?;
            let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            value = value.wrapping_add(difference as u64);
            values.push(value);
        }
        Ok(values)
    }

    /// A column of exactly `count` numbers.
    pub(super) fn column_of(&mut self, count: usize) -> Result<Vec<u64>, Damage> {
        let values = self.column()?;
        match values.len() == count {
            true => Ok(values),
            false => Err("columns of equal length"),
        }
    }

    /// A column of times, bytes or counts, small enough that views can add a few of them.
    pub(super) fn figures(&mut self) -> Result<Vec<u64>, Damage> {
        let values = self.column()?;
        match values.iter().all(|value| *value <= MOST) {
            true => Ok(values),
            false => Err("figures below 2^56"),
        }
    }

    /// Exactly `count` of them.
    pub(super) fn figures_of(&mut self, count: usize) -> Result<Vec<u64>, Damage> {
        let values = self.figures()?;
        match values.len() == count {
            true => Ok(values),
            false => Err("columns of equal length"),
        }
    }

    /// One of them.
    pub(super) fn figure(&mut self) -> Result<u64, Damage> {
        match self.u64()? {
            value if value <= MOST => Ok(value),
            _ => Err("a figure below 2^56"),
        }
    }

    /// A column of numbers that fit in `T`.
    pub(super) fn smalls<T: TryFrom<u64>>(&mut self) -> Result<Vec<T>, Damage> {
        let values = self.column()?.into_iter();
        let smalls = values.map(|value| T::try_from(value).map_err(|_| "smaller numbers"));
        smalls.collect()
    }

    /// A column of exactly `count` reals.
    pub(super) fn reals_of(&mut self, count: usize) -> Result<Vec<f64>, Damage> {
        match self.count()? == count {
            true => (0..count).map(|_| self.f64()).collect(),
            false => Err("columns of equal length"),
        }
    }

    /// Fails where bytes are left.
    pub(super) fn end(&self) -> Result<(), Damage> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err("nothing after the last column"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn columns_come_back(values: Vec<u64>, reals: Vec<f64>, text: String) {
            let mut out = Out::default();
            out.column(values.iter().copied());
            out.reals(reals.iter().copied());
            out.text(&text);
            let mut read = In(&out.0);
            prop_assert_eq!(read.column().unwrap(), values);
            let back = read.reals_of(reals.len()).unwrap();
            prop_assert!(back.iter().zip(&reals).all(|(a, b)| a.to_bits() == b.to_bits()));
            prop_assert_eq!(read.text().unwrap(), text);
            prop_assert_eq!(read.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            let _ = In(&bytes).column();
            let _ = In(&bytes).text().map(str::len);
            let _ = In(&bytes).reals_of(3);
        }
    }
}
