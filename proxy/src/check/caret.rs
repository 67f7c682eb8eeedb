//! The line of a text in which an error is, with a caret under it, as psql shows it (`reportErrorPosition` of libpq).

/// The most columns of a line that are shown, and how many of them stay behind the caret where there are more.
const COLUMNS_MAX: usize = 60;
const COLUMNS_BEHIND: usize = 10;

/// `LINE n: …` and the line with the caret; `None` for a position beyond the text. `position` counts characters from 1.
pub(super) fn lines(text: &str, position: u32) -> Option<[String; 2]> {
    let characters: Vec<char> = text.chars().collect();
    let at = usize::try_from(position).ok()?.checked_sub(1).filter(|at| *at <= characters.len())?;
    let (number, start) = line_of(&characters, at);
    let line: Vec<char> = characters[start..].iter().copied().take_while(|c| !is_line_end(*c)).collect();
    let caret = at - start;
    let shown = window(&line, caret);
    let (cut_left, cut_right) = (shown.start > 0, shown.end < line.len());
    let visible: String = line[shown.clone()].iter().map(|c| if c.is_control() { ' ' } else { *c }).collect();
    let head = format!("LINE {number}: {}", if cut_left { "..." } else { "" });
    let before = line.get(shown.start..caret).map_or(0, width);
    let marker = format!("{}^", " ".repeat(head.chars().count() + before));
    Some([format!("{head}{visible}{}", if cut_right { "..." } else { "" }), marker])
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

/// The number of the line that contains a character, from 1, and where it starts.
fn line_of(characters: &[char], at: usize) -> (usize, usize) {
    let (mut number, mut start) = (1, 0);
    for (index, c) in characters[..at].iter().enumerate() {
        let first_of_two = *c == '\r' && characters.get(index + 1) == Some(&'\n');
        if is_line_end(*c) && !first_of_two {
            number += 1;
            start = index + 1;
        }
    }
    // Between the two characters of one line end is still the line that they end.
    (number, start.min(at))
}

/// The part of a line that is shown.
fn window(line: &[char], caret: usize) -> std::ops::Range<usize> {
    let (mut start, mut end) = (0, line.len());
    if width(line) <= COLUMNS_MAX {
        return start..end;
    }
    let caret = caret.min(line.len());
    if width(&line[..caret]) + COLUMNS_BEHIND <= COLUMNS_MAX {
        while width(&line[..end]) > COLUMNS_MAX {
            end -= 1;
        }
        return start..end;
    }
    end = end.min(caret + COLUMNS_BEHIND);
    while end > caret && width(&line[caret..end]) > COLUMNS_BEHIND {
        end -= 1;
    }
    while start < caret && width(&line[start..end]) > COLUMNS_MAX {
        start += 1;
    }
    start..end
}

/// The columns that characters take on a terminal.
fn width(characters: &[char]) -> usize {
    characters.iter().map(|c| columns(*c)).sum()
}

/// Two for East Asian wide characters and emoji, one for all others: also for combining marks, as libpq counts.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115f | 0x2e80..=0x303e | 0x3041..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff => 2,
        0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f900..=0x1f9ff => 2,
        0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(text: &str, position: u32, line: &str, caret: &str) {
        assert_eq!(lines(text, position).unwrap(), [line, caret], "{text:?} at {position}");
    }

    /// What psql 15 shows for the same texts and positions.
    #[test]
    fn the_line_and_the_caret_are_psqls() {
        check("SELECT nix", 8, "LINE 1: SELECT nix", "               ^");
        check("SELECT 1,\n\tnix\nFROM t", 12, "LINE 2:  nix", "         ^");
        check("SELECT 1,\r\nnix", 12, "LINE 2: nix", "        ^");
        check("SELECT 'über', nix", 16, "LINE 1: SELECT 'über', nix", "                       ^");
        check("SELECT '東京', nix", 14, "LINE 1: SELECT '東京', nix", "                       ^");
        check("SELECT 'e\u{301}', nix", 14, "LINE 1: SELECT 'e\u{301}', nix", "                     ^");
        check("SELECT (1", 10, "LINE 1: SELECT (1", "                 ^");
        check("", 1, "LINE 1: ", "        ^");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let long = format!("SELECT nix, {}", "a, ".repeat(40));
        let shown: String = long.chars().take(60).collect();
        check(&long, 8, &format!("LINE 1: {shown}..."), "               ^");
        let late = format!("SELECT {}nix, {}", "a, ".repeat(40), "b, ".repeat(40));
        let [line, caret] = lines(&late, 128).unwrap();
        assert!(line.starts_with("LINE 1: ...") && line.ends_with("..."), "{line}");
        assert_eq!(line.chars().count(), 8 + 3 + 60 + 3);
        assert_eq!(line.chars().skip(caret.chars().count() - 1).take(3).collect::<String>(), "nix");
    }

    #[test]
    fn a_position_beyond_the_text_is_none() {
        assert_eq!(lines("SELECT", 9), None);
        assert_eq!(lines("SELECT", 0), None);
    }
}
