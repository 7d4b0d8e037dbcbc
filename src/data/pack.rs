//! Several short examples in one row.

use std::collections::BTreeMap;

/// Distributes lengths over rows of `capacity`, longest first, each into the fullest row that still has room (best fit
/// decreasing). Lengths above the capacity get a row of their own. Indices in a row, and rows by their first index,
/// ascend, so that equal input gives equal output. `[rows][indices]`
pub(super) fn best_fit(lengths: &[u32], capacity: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i as usize]), i));
    let mut rows: Vec<Vec<u32>> = Vec::new();
    // Rows by the room left in them.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in order {
        let length = lengths[index as usize] as usize;
        let fitting = open.range_mut(length..).next().map(|(&room, rows)| (room, rows.pop()));
        let (room, row) = match fitting {
            Some((room, Some(row))) => {
                if open.get(&room).is_some_and(Vec::is_empty) {
                    open.remove(&room);
                }
                (room, row)
            }
            _ => {
                rows.push(Vec::new());
                (capacity.max(length), rows.len() - 1)
            }
        };
        rows[row].push(index);
        if room > length {
            open.entry(room - length).or_default().push(row);
        }
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable_by_key(|row| row[0]);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_in_one_row_and_rows_fit() {
        let lengths: Vec<u32> = (0..500).map(|i| 1 + i * i * 31 % 97).collect();
        let rows = best_fit(&lengths, 100);
        let mut seen: Vec<u32> = rows.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        let filled = |row: &Vec<u32>| row.iter().map(|&i| lengths[i as usize]).sum::<u32>();
        assert!(rows.iter().all(|row| filled(row) <= 100));
        // Best fit decreasing needs at most 11/9 of the optimum and one more.
        assert!(rows.len() <= (lengths.iter().sum::<u32>() as usize).div_ceil(100) * 11 / 9 + 1, "{}", rows.len());
    }

    #[test]
    fn long_and_exact_lengths() {
        assert_eq!(best_fit(&[3, 12, 5, 10, 2], 10), [vec![0, 2, 4], vec![1], vec![3]]);
        assert_eq!(best_fit(&[], 10), Vec::<Vec<u32>>::new());
    }
}
