import { useSyncExternalStore } from 'react';
import { type LiveState, liveNow, subscribe } from './live.ts';

/** What the page knows of the appliance; draws anew with every change. */
export const useLive = (): LiveState => useSyncExternalStore(subscribe, liveNow);
