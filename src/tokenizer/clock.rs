//! The date for templates that print it (`strftime_now`).

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in UTC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Seconds since 1970-01-01T00:00:00Z.
    seconds: u64,
}

impl Clock {
    pub(super) fn now() -> Clock {
        Clock { seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) }
    }

    /// `strftime` for the fields that chat templates use; other fields are left as they stand.
    pub(super) fn format(self, format: &str) -> String {
        let (year, month, day, of_year) = civil(self.seconds / 86_400);
        let (hour, minute, second) = (self.seconds / 3600 % 24, self.seconds / 60 % 60, self.seconds % 60);
        let weekday = DAYS[((self.seconds / 86_400 + 4) % 7) as usize];
        let name = MONTHS[month as usize - 1];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            out += &match chars.next() {
                Some('Y') => year.to_string(),
                Some('y') => format!("{:02}", year % 100),
                Some('m') => format!("{month:02}"),
                Some('d') => format!("{day:02}"),
                Some('e') => format!("{day:2}"),
                Some('j') => format!("{of_year:03}"),
                Some('B') => name.to_string(),
                Some('b' | 'h') => name[..3].to_string(),
                Some('A') => weekday.to_string(),
                Some('a') => weekday[..3].to_string(),
                Some('H') => format!("{hour:02}"),
                Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
                Some('M') => format!("{minute:02}"),
                Some('S') => format!("{second:02}"),
                Some('F') => format!("{year}-{month:02}-{day:02}"),
                Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
                Some('Z') => "UTC".to_string(),
                Some('z') => "+0000".to_string(),
                Some('%') => "%".to_string(),
                Some(other) => format!("%{other}"),
                None => "%".to_string(),
            };
        }
        out
    }
}

/// (year, month 1-12, day 1-31, day of the year 1-366) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + leap(year) as u64 {
        left -= 365 + leap(year) as u64;
        year += 1;
    }
    let of_year = left + 1;
    let lengths = [31, 28 + leap(year) as u64, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, left + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_python() {
        // datetime.fromtimestamp(t, timezone.utc).strftime(...)
        let format = |seconds| Clock { seconds }.format("%d %b %Y %A %H:%M:%S %j %I%p %% %Q");
        assert_eq!(format(0), "01 Jan 1970 Thursday 00:00:00 001 12AM % %Q");
        assert_eq!(format(951_827_696), "29 Feb 2000 Tuesday 12:34:56 060 12PM % %Q");
        assert_eq!(format(1_735_689_599), "31 Dec 2024 Tuesday 23:59:59 366 11PM % %Q");
    }
}
