/**
 * How the page writes quantities. Pure; every function names the unit that it takes.
 */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'] as const;

/** Bytes in IEC units with three significant digits, e.g. `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return 'unknown';
  const sign = bytes < 0 ? '−' : '';
  let value = Math.abs(bytes);
  let unit = 0;
  // 1023.5 would print as 1024 of the smaller unit.
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  const text = value.toFixed(digits);
  return `${sign}${digits > 0 ? text.replace(/\.?0+$/, '') : text} ${UNITS[unit]}`;
}

/** Bytes per second in IEC units. */
export function formatRate(bytesPerSec: number): string {
  return `${formatBytes(bytesPerSec)}/s`;
}

/** A length of time given in milliseconds, with at most two units, e.g. `320 ms`, `4.2 s`, `3 min 5 s`. */
export function formatDuration(ms: number): string {
  if (!Number.isFinite(ms)) return 'unknown';
  const value = Math.max(0, ms);
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 9950) return `${(value / 1000).toFixed(1)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 60) return `${seconds} s`;
  const parts: [number, string][] = [
    [Math.floor(seconds / 86400), 'd'],
    [Math.floor(seconds / 3600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'min'],
    [seconds % 60, 's'],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(' ');
}

/** A moment beside now, e.g. `12 s ago`, `in 89 d`; one unit, as it stands beside the absolute time. */
export function formatRelative(atMs: number, nowMs: number): string {
  const seconds = Math.round((nowMs - atMs) / 1000);
  const magnitude = Math.abs(seconds);
  if (magnitude < 2) return 'just now';
  const text =
    magnitude < 60
      ? `${magnitude} s`
      : magnitude < 3600
        ? `${Math.floor(magnitude / 60)} min`
        : magnitude < 172800
          ? `${Math.floor(magnitude / 3600)} h`
          : `${Math.floor(magnitude / 86400)} d`;
  return seconds >= 0 ? `${text} ago` : `in ${text}`;
}

const two = (value: number) => String(value).padStart(2, '0');

/** A moment in the reader's own time zone: `2026-08-01 14:03:22`. */
export function formatAbsolute(at: Date): string {
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${formatClock(at)}`;
}

/** The time of day in the reader's own time zone: `14:03:22`. */
export function formatClock(at: Date): string {
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** Done of total in percent, 0 to 100; 100 only when everything is done. */
export function percentOf(done: number, total: number): number {
  if (total <= 0) return 100;
  const percent = Math.min(100, Math.max(0, (done / total) * 100));
  return done < total ? Math.min(percent, 99.9) : percent;
}

/** `1 disk`, `2 disks`. */
export function count(n: number, singular: string, plural = `${singular}s`): string {
  return `${n} ${n === 1 ? singular : plural}`;
}
