import {
  createContext,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useMemo,
  useState,
} from 'react';
import type { ApiError, User } from '../../../api/schema.ts';
import { ApiFailure, api, asApiError, onSessionLost } from '../api/client.ts';
import { startLive, stopLive } from '../api/live.ts';

export type SessionState =
  | { name: 'asking' }
  | { name: 'unreachable'; error: ApiError }
  | { name: 'out'; ended: boolean }
  | { name: 'must-change-password'; user: User }
  | { name: 'in'; user: User };

interface SessionApi {
  session: SessionState;
  enter: (user: User) => void;
  leave: () => Promise<void>;
  ask: () => void;
}

const Context = createContext<SessionApi | undefined>(undefined);

const stateOf = (user: User): SessionState =>
  user.mustChangePassword ? { name: 'must-change-password', user } : { name: 'in', user };

export function SessionProvider(props: { children: ReactNode }) {
  const [session, setSession] = useState<SessionState>({ name: 'asking' });

  const ask = useCallback(async () => {
    try {
      setSession(stateOf(await api.session()));
    } catch (thrown) {
      const refused = thrown instanceof ApiFailure && thrown.status === 401;
      setSession(
        refused
          ? { name: 'out', ended: false }
          : { name: 'unreachable', error: asApiError(thrown) },
      );
    }
  }, []);

  useEffect(() => {
    onSessionLost(() => setSession({ name: 'out', ended: true }));
    void ask();
  }, [ask]);

  const value = useMemo<SessionApi>(
    () => ({
      session,
      ask,
      enter: (user) => setSession(stateOf(user)),
      leave: async () => {
        await api.logout().catch(() => undefined);
        setSession({ name: 'out', ended: false });
      },
    }),
    [session, ask],
  );

  // The stream follows the session: nothing of an old session may stay on the screen.
  const inside = session.name === 'in';
  useEffect(() => {
    if (!inside) return;
    startLive();
    return stopLive;
  }, [inside]);

  return <Context value={value}>{props.children}</Context>;
}

export function useSession(): SessionApi {
  const value = useContext(Context);
  if (!value) throw new Error('useSession outside of SessionProvider');
  return value;
}

/** The person who is logged in, and what their role allows. */
export function useUser(): { user: User; mayOperate: boolean; isAdmin: boolean } {
  const { session } = useSession();
  if (session.name !== 'in') throw new Error('useUser outside of a session');
  const { user } = session;
  return { user, mayOperate: user.role !== 'viewer', isAdmin: user.role === 'admin' };
}
