import { useCallback, useEffect, useRef, useState } from 'react';
import type { ApiError } from '../../../api/schema.ts';
import { applianceNow, asApiError } from '../api/client.ts';

/** The appliance's present time in ms, renewed every `everyMs`. */
export function useNow(everyMs = 1000): number {
  const [now, setNow] = useState(applianceNow);
  useEffect(() => {
    const timer = setInterval(() => setNow(applianceNow()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export interface Polled<T> {
  data: T | undefined;
  error: ApiError | undefined;
  reload: () => void;
}

/** Reads something that has no events: at once, and again every `everyMs` while the page is visible. */
export function usePolled<T>(read: () => Promise<T>, everyMs: number | null): Polled<T> {
  const [data, setData] = useState<T>();
  const [error, setError] = useState<ApiError>();
  const latest = useRef(read);
  latest.current = read;
  const alive = useRef(true);

  const reload = useCallback(async () => {
    try {
      const answer = await latest.current();
      if (!alive.current) return;
      setData(answer);
      setError(undefined);
    } catch (thrown) {
      if (alive.current) setError(asApiError(thrown));
    }
  }, []);

  useEffect(() => {
    alive.current = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const round = async () => {
      if (!document.hidden) await reload();
      if (alive.current && everyMs !== null) timer = setTimeout(round, everyMs);
    };
    void round();
    return () => {
      alive.current = false;
      clearTimeout(timer);
    };
  }, [reload, everyMs]);

  return { data, error, reload };
}

export interface Action<A extends unknown[]> {
  busy: boolean;
  error: ApiError | undefined;
  run: (...args: A) => Promise<boolean>;
  clear: () => void;
}

/** One act of the person: whether it is under way, and the error it ended with. `run` resolves to its success. */
export function useAction<A extends unknown[]>(act: (...args: A) => Promise<unknown>): Action<A> {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<ApiError>();
  const running = useRef(false);
  const run = async (...args: A) => {
    // A double click is one act.
    if (running.current) return false;
    running.current = true;
    setBusy(true);
    setError(undefined);
    try {
      await act(...args);
      return true;
    } catch (thrown) {
      setError(asApiError(thrown));
      return false;
    } finally {
      running.current = false;
      setBusy(false);
    }
  };
  return { busy, error, run, clear: () => setError(undefined) };
}

/** The browser tab's title. */
export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · Understudy`;
  }, [title]);
}
