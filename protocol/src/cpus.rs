//! Lists of CPUs or memory nodes, as the OCI document and the kernel write them (cpuset(7), "List format"): `0-3,8`.

/// No kernel for x86-64 has more CPUs (NR_CPUS, arch/x86/Kconfig), and none has as many nodes.
const MOST: u32 = 8192;

/// Why a text is no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Something between two commas is neither.
    #[error("is no list of numbers and ranges (0-3,8)")]
    Syntax,
    /// A range whose end is before its begin.
    #[error("has a range that ends before it begins")]
    Backwards,
    /// A number that nothing has.
    #[error("has a number above 8191, and no kernel has so many")]
    TooLarge,
}

/// How many different members the list has. An empty one has none.
///
/// # Errors
/// See [`ListError`].
pub fn members(list: &str) -> Result<u32, ListError> {
    let list = list.trim();
    if list.is_empty() {
        return Ok(0);
    }
    let mut ranges = list.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
    ranges.sort_unstable();
    let (mut count, mut next) = (0, 0);
    for (first, last) in ranges {
        let first = first.max(next);
        if first <= last {
            count += last - first + 1;
            next = last + 1;
        }
    }
    Ok(count)
}

fn range(text: &str) -> Result<(u32, u32), ListError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first { Err(ListError::Backwards) } else { Ok((first, last)) }
}

fn number(text: &str) -> Result<u32, ListError> {
    // `parse` takes a sign.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ListError::Syntax);
    }
    text.parse().ok().filter(|number| *number < MOST).ok_or(ListError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_counted_once() {
        for (list, count) in
            [("", 0), ("0", 1), ("7", 1), ("4-7", 4), ("0-3,8", 5), ("8,0-3,2-5,3\n", 7), ("0-8191", 8192)]
        {
            assert_eq!(members(list), Ok(count), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in ["0-", "-1", "abc", "1,,2", ",", "0-3-5", "+1", "0x1", "1 2", "0-10:2/4"] {
            assert_eq!(members(list), Err(ListError::Syntax), "{list}");
        }
        assert_eq!(members("3-1"), Err(ListError::Backwards));
        assert_eq!(members("0-8192"), Err(ListError::TooLarge));
        assert_eq!(members("99999999999999999999"), Err(ListError::TooLarge));
    }
}
