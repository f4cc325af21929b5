//! Expected texts kept in files, and how they are renewed: with `HAWQC_BLESS` set, what a test
//! finds is written into the file instead of compared with it, to be reviewed as a diff.

/// Whether expectations are renewed instead of checked.
pub fn blessing() -> bool {
    std::env::var_os("HAWQC_BLESS").is_some_and(|v| !v.is_empty() && v != "0")
}

/// `Ok` if both texts are equal up to white space at the end, else the first line that differs.
pub fn compare(expected: &str, found: &str) -> Result<(), String> {
    let (expected, found) = (expected.trim_end(), found.trim_end());
    if expected == found {
        return Ok(());
    }
    let (mut e, mut f) = (expected.lines(), found.lines());
    for number in 1.. {
        match (e.next(), f.next()) {
            (None, None) => break,
            (e, f) if e == f => {}
            (e, f) => {
                let [e, f] = [e, f].map(|line| line.unwrap_or("(the end)"));
                return Err(format!("line {number}\n  expected: {e}\n  found:    {f}"));
            }
        }
    }
    Err("the texts differ in their ends of lines".into())
}
