//! The texts of standard input, one after the other, none held longer than the judge looks at.

use std::io::{self, BufRead};

use portcullis_policy::SQL_BYTES_MAX;

use super::Each;

pub(super) struct Texts<R> {
    input: R,
    each: Option<Each>,
    text: Vec<u8>,
    number: u64,
    ended: bool,
}

impl<R: BufRead> Texts<R> {
    pub(super) fn new(input: R, each: Option<Each>) -> Self {
        Self { input, each, text: Vec::new(), number: 0, ended: false }
    }

    /// The next text and its number from 1, which is that of its line where each line is a text.
    ///
    /// Of a text that is longer than the judge takes, one byte more than that is kept.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        loop {
            // Standard input that is empty is one empty text, unless it was to hold several.
            if self.ended || !self.fill()? && (self.each.is_some() || self.number > 0) {
                return Ok(None);
            }
            self.number += 1;
            let blank = self.text.iter().all(u8::is_ascii_whitespace);
            if !(self.each == Some(Each::Line) && blank) {
                return Ok(Some((self.number, &self.text)));
            }
        }
    }

    /// Reads up to the separator; whether there was anything.
    fn fill(&mut self) -> io::Result<bool> {
        let separator = self.each.map(|each| if each == Each::Line { b'\n' } else { 0 });
        self.text.clear();
        let mut anything = false;
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                self.ended = true;
                return Ok(anything);
            }
            anything = true;
            let end = separator.and_then(|separator| buffer.iter().position(|&byte| byte == separator));
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let room = (SQL_BYTES_MAX + 1).saturating_sub(self.text.len());
            self.text.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::BufReader;

    fn check(input: &str, each: Option<Each>, expect: &[(u64, &str)]) {
        for capacity in [1, 3, 4096] {
            let mut texts = Texts::new(BufReader::with_capacity(capacity, input.as_bytes()), each);
            let mut found = Vec::new();
            while let Some((number, text)) = texts.next().unwrap() {
                found.push((number, String::from_utf8(text.to_vec()).unwrap()));
            }
            let found: Vec<(u64, &str)> = found.iter().map(|(number, text)| (*number, text.as_str())).collect();
            assert_eq!(found, expect, "{input:?} in pieces of {capacity}");
        }
    }

    #[test]
    fn texts_are_cut_at_their_separator() {
        check("", None, &[(1, "")]);
        check("a\nb\n", None, &[(1, "a\nb\n")]);
        check("", Some(Each::Line), &[]);
        check("a\n\n  \nb", Some(Each::Line), &[(1, "a"), (4, "b")]);
        check("a\nb\n", Some(Each::Line), &[(1, "a"), (2, "b")]);
        check("a\nb\0\0c", Some(Each::Nul), &[(1, "a\nb"), (2, ""), (3, "c")]);
        check("a\0", Some(Each::Nul), &[(1, "a")]);
    }

    #[test]
    fn no_more_of_a_text_is_held_than_shows_that_it_is_too_long() {
        let input = [vec![b'x'; 3 * SQL_BYTES_MAX], b"\nnext".to_vec()].concat();
        let mut texts = Texts::new(&input[..], Some(Each::Line));
        assert_eq!(texts.next().unwrap().unwrap().1.len(), SQL_BYTES_MAX + 1);
        assert_eq!(texts.next().unwrap().unwrap(), (2, &b"next"[..]));
    }
}
