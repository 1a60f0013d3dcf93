/** The agent's log: short lines to the journal (`<N>` is syslog's priority, which journald reads). */
import { asUndError } from '../../protocol/errors.ts';

export type Level = 'error' | 'warning' | 'info';
export type Log = (level: Level, text: string) => void;

const PRIORITY: Record<Level, number> = { error: 3, warning: 4, info: 6 };

export const log: Log = (level, text) => {
  const line = text.replace(/\s*\n\s*/g, ' | ').slice(0, 2000);
  process.stderr.write(process.env.JOURNAL_STREAM ? `<${PRIORITY[level]}>${line}\n` : `${line}\n`);
};

/** An error in one line, with its code and what to do. */
export function inWords(error: unknown): string {
  const coded = asUndError(error);
  return `${coded.code}: ${coded.message} ${coded.hint}`;
}

/** Says a thing again only when it changed: a link that fails every few seconds must not fill the source's disk. */
export function onChange(log: Log): Log {
  let last = '';
  let times = 0;
  return (level, text) => {
    if (text === last) {
      times++;
      // Powers of two: 2nd, 4th, 8th, … time.
      if ((times & (times - 1)) === 0) log(level, `${text} (${times} times)`);
      return;
    }
    last = text;
    times = 1;
    log(level, text);
  };
}
