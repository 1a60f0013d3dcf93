/**
 * A small client of the appliance's API for scripts and end-to-end tests.
 *
 * The appliance's certificate comes from its own CA. The CA is fetched once without checking (trust on first use), or
 * given as PEM, and every later request is checked against it.
 */
import { request } from 'node:https';
import type { ApiError, Failover, Job, Source } from '../../appliance/api/schema.ts';

/** The appliance answered with a refusal; `error` says what and what to do. */
export class ApiFailure extends Error {
  status: number;
  error: ApiError;
  constructor(status: number, error: ApiError) {
    super(`${error.code}: ${error.message} ${error.hint}`);
    this.status = status;
    this.error = error;
  }
}

type Options = { method?: string; body?: unknown; timeoutMs?: number };

export class ApplianceClient {
  #base: URL;
  #ca: string | undefined;
  #cookie = '';

  constructor(baseUrl: string, caPem?: string) {
    this.#base = new URL(baseUrl);
    this.#ca = caPem;
  }

  /** Raw call; resolves with the body and the status, whatever the status is. */
  async raw(path: string, options: Options = {}): Promise<{ status: number; body: Buffer }> {
    const payload = options.body === undefined ? undefined : JSON.stringify(options.body);
    return new Promise((resolve, reject) => {
      const req = request(
        new URL(path, this.#base),
        {
          method: options.method ?? (payload === undefined ? 'GET' : 'POST'),
          // Before the CA is known only the CA itself is asked for; its fingerprint is what a person compares.
          rejectUnauthorized: this.#ca !== undefined,
          ca: this.#ca,
          // The page is reached through a forwarded port, by an address that no certificate can name.
          checkServerIdentity: () => undefined,
          timeout: options.timeoutMs ?? 60_000,
          headers: {
            'x-understudy': '1',
            ...(this.#cookie ? { cookie: this.#cookie } : {}),
            ...(payload === undefined
              ? {}
              : {
                  'content-type': 'application/json',
                  'content-length': Buffer.byteLength(payload),
                }),
          },
        },
        (res) => {
          const chunks: Buffer[] = [];
          res.on('data', (chunk: Buffer) => chunks.push(chunk));
          res.on('error', reject);
          res.on('end', () => {
            for (const cookie of res.headers['set-cookie'] ?? []) {
              this.#cookie = cookie.split(';')[0] ?? '';
            }
            resolve({ status: res.statusCode ?? 0, body: Buffer.concat(chunks) });
          });
        },
      );
      req.on('timeout', () => req.destroy(new Error(`no answer from ${this.#base.host}${path}`)));
      req.on('error', reject);
      req.end(payload);
    });
  }

  /** JSON call. @throws ApiFailure when the appliance refuses. */
  async call<T>(path: string, options: Options = {}): Promise<T> {
    const { status, body } = await this.raw(path, options);
    const text = body.toString('utf8');
    let parsed: unknown;
    try {
      parsed = text ? JSON.parse(text) : undefined;
    } catch {
      parsed = undefined;
    }
    if (status >= 400) {
      const error = (parsed as ApiError | undefined) ?? {
        code: `HTTP_${status}`,
        message: text.slice(0, 300),
        hint: '',
      };
      throw new ApiFailure(status, error);
    }
    return parsed as T;
  }

  /** Learns the appliance's CA; every call after it is checked against this CA. */
  async trustOnFirstUse(): Promise<string> {
    if (this.#ca === undefined) {
      const { status, body } = await this.raw('/api/ca.pem');
      if (status !== 200) throw new Error(`the appliance gave no CA: HTTP ${status}`);
      this.#ca = body.toString('utf8');
    }
    return this.#ca;
  }

  /** Logs in; a one-time password is replaced by `nextPassword` at once. */
  async login(username: string, password: string, nextPassword?: string): Promise<void> {
    const user = await this.call<{ mustChangePassword: boolean }>('/api/login', {
      body: { username, password },
    });
    if (user.mustChangePassword && nextPassword) {
      await this.call('/api/session/password', { body: { current: password, next: nextPassword } });
    }
  }

  source(id: string): Promise<Source> {
    return this.call(`/api/sources/${id}`);
  }
  job(id: string): Promise<Job> {
    return this.call(`/api/jobs/${id}`);
  }
  failover(id: string): Promise<Failover> {
    return this.call(`/api/failovers/${id}`);
  }
}

/** Thrown by a probe of `until` when waiting longer makes no sense. */
export class GiveUp extends Error {}

/**
 * Polls until `probe` returns something other than undefined.
 * @throws Error naming `what` and the last thing seen when `limitMs` has passed.
 */
export async function until<T>(
  what: string,
  limitMs: number,
  probe: () => Promise<T | undefined> | T | undefined,
  everyMs = 1000,
): Promise<T> {
  const end = Date.now() + limitMs;
  let last: unknown;
  for (;;) {
    try {
      const value = await probe();
      if (value !== undefined) return value;
      last = 'not yet';
    } catch (error) {
      if (error instanceof GiveUp) throw error;
      last = error;
    }
    if (Date.now() > end) {
      throw new Error(`waited ${Math.round(limitMs / 1000)} s for ${what}; last: ${last}`, {
        cause: last,
      });
    }
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
