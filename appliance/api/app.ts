/**
 * The HTTP side of the appliance: the API of `schema.ts`, the page's files, and the enrolment of agents.
 * Who may call a route, and that every act is audited, is decided here for all routes alike.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import cookie from '@fastify/cookie';
import staticFiles from '@fastify/static';
import swagger from '@fastify/swagger';
import {
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifySchema,
  fastify,
  LogController,
} from 'fastify';
import Type from 'typebox';
import { undError } from '../../protocol/errors.ts';
import { VERSION } from '../../protocol/version.ts';
import { roleAllows, type Session } from '../auth/auth-service.ts';
import { toApiError, toHttpError } from './api-error.ts';
import { registerAgentRoutes } from './routes/agent.ts';
import { registerConfigRoutes } from './routes/config.ts';
import { registerEventRoutes } from './routes/events.ts';
import { registerFailoverRoutes } from './routes/failovers.ts';
import { registerGroupRoutes } from './routes/groups.ts';
import { registerJobRoutes } from './routes/jobs.ts';
import { registerMountRoutes } from './routes/mounts.ts';
import { registerPointRoutes } from './routes/points.ts';
import { registerSessionRoutes } from './routes/session.ts';
import { registerSourceRoutes } from './routes/sources.ts';
import { registerSystemRoutes } from './routes/system.ts';
import { ApiError, type Role } from './schema.ts';
import type { Services } from './services.ts';

export const SESSION_COOKIE = 'und_session';

/** `public`: anyone. `first-login`: also with a password that has to be changed. Else the least role. */
export type Access = 'public' | 'first-login' | Role;

export interface RouteOptions {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  url: string;
  access: Access;
  summary: string;
  schema?: FastifySchema;
  bodyLimit?: number;
  /** The act's name in the audit log, for everything that changes something; null for what changes nothing. */
  act: string | null;
  /** What the act is done to; the route's parameter, if nothing better is known. */
  object?: (request: FastifyRequest) => string;
  handler: (request: FastifyRequest, reply: FastifyReply) => unknown;
}

export type Router = (options: RouteOptions) => void;

declare module 'fastify' {
  interface FastifyRequest {
    session: Session | null;
  }
  interface FastifyContextConfig {
    access?: Access;
    plainPost?: boolean;
  }
}

/** Whoever a request comes from, for the audit log. */
const whoOf = (request: FastifyRequest): string => request.session?.user.username ?? request.ip;

const objectOf = (request: FastifyRequest): string => {
  const params = (request.params ?? {}) as Record<string, string>;
  return params.id ?? params.username ?? '';
};

/** An instance that only logs; `registerApi` gives it routes. Made first, because all services log through it. */
export function createServer(options: {
  logger: boolean | object;
  https?: { key: string; cert: string } | null;
}): FastifyInstance {
  const serverOptions = {
    logger: options.logger,
    // Acts are in the audit log, failures are logged where they happen.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: 256 * 1024,
    requestTimeout: 120_000,
    return503OnClosing: true,
    forceCloseConnections: true,
    // Nothing is coerced, dropped or guessed: a wrong type is refused with its path.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, allErrors: false } },
  } as const;
  return (options.https
    ? fastify({ ...serverOptions, https: { ...options.https, minVersion: 'TLSv1.2' } })
    : fastify(serverOptions)) as unknown as FastifyInstance;
}

export async function registerApi(app: FastifyInstance, services: Services): Promise<void> {
  // The schemas describe the answers; views are built field by field, so nothing has to be filtered out of them.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data));
  await app.register(cookie);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Understudy appliance',
        version: VERSION,
        description:
          'Everything that the page does. State-changing calls need the header `x-understudy: 1`.',
      },
      components: {
        securitySchemes: { session: { type: 'apiKey', in: 'cookie', name: SESSION_COOKIE } },
      },
      security: [{ session: [] }],
    },
  });
  app.decorateRequest('session', null);

  app.addHook('onRequest', async (request, reply) => {
    reply.headers({
      'x-content-type-options': 'nosniff',
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
      'content-security-policy':
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    });
    const { access, plainPost } = request.routeOptions.config;
    if (access === undefined) return;
    reply.header('cache-control', 'no-store');
    if (request.method !== 'GET' && request.method !== 'HEAD' && !plainPost) {
      if (request.headers['x-understudy'] !== '1') throw undError('UND_AUTH_HEADER_MISSING');
    }
    request.session = services.auth.resolve(request.cookies[SESSION_COOKIE]);
    if (access === 'public') return;
    if (!request.session) throw undError('UND_AUTH_REQUIRED');
    if (access === 'first-login') return;
    if (request.session.user.mustChangePassword) {
      throw undError('UND_AUTH_PASSWORD_CHANGE_NEEDED');
    }
    if (!roleAllows(request.session.user.role, access)) {
      services.audit.add({
        who: whoOf(request),
        act: `${request.method} ${request.routeOptions.url}`,
        object: objectOf(request),
        outcome: 'refused',
        detail: `needs the role ${access}`,
      });
      throw undError('UND_AUTH_FORBIDDEN', { role: access });
    }
  });

  app.setErrorHandler((raw, request, reply) => {
    const { status, error } = toHttpError(raw);
    if (status >= 500) request.log.error({ err: raw, code: error.code }, error.message);
    if (error.code === 'UND_AUTH_LOCKED') {
      reply.header('retry-after', String(error.params.retrySeconds ?? 30));
    }
    return reply.status(status).type('application/json').send(toApiError(error));
  });

  const route: Router = (options) => {
    app.route({
      method: options.method,
      url: options.url,
      ...(options.bodyLimit ? { bodyLimit: options.bodyLimit } : {}),
      config: {
        access: options.access,
        plainPost: options.url.startsWith('/agent/'),
      },
      // A GET with a body is nobody's need, and HEAD would run handlers of streams.
      exposeHeadRoute: false,
      // A schema cannot say that no body at all is as good as an empty one.
      ...(Type.IsOptional(options.schema?.body)
        ? {
            preValidation: async (request: FastifyRequest) => {
              request.body ??= {};
            },
          }
        : {}),
      schema: {
        summary: options.summary,
        tags: [options.url.split('/')[2] ?? 'other'],
        ...(options.access === 'public' ? { security: [] } : {}),
        ...options.schema,
        response: {
          ...(options.schema?.response as object | undefined),
          '4xx': ApiError,
          '5xx': ApiError,
        },
      },
      handler: async (request, reply) => {
        if (options.act === null) return options.handler(request, reply);
        const entry = {
          who: whoOf(request),
          act: options.act,
          object: options.object?.(request) ?? objectOf(request),
        };
        try {
          const result = await options.handler(request, reply);
          services.audit.add({ ...entry, outcome: 'ok', detail: '' });
          return result;
        } catch (thrown) {
          const { status, error } = toHttpError(thrown);
          services.audit.add({
            ...entry,
            outcome: status < 500 ? 'refused' : 'failed',
            detail: `${error.code}: ${error.message}`,
          });
          throw thrown;
        }
      },
    });
  };

  registerSessionRoutes(route, services);
  registerSystemRoutes(route, services);
  registerSourceRoutes(route, services);
  registerJobRoutes(route, services);
  registerPointRoutes(route, services);
  registerFailoverRoutes(route, services);
  registerGroupRoutes(route, services);
  registerMountRoutes(route, services);
  registerConfigRoutes(route, services);
  registerEventRoutes(route, services);
  registerAgentRoutes(route, services);
  app.get('/api/openapi.json', { schema: { hide: true }, config: { access: 'public' } }, async () =>
    app.swagger(),
  );

  const hasPage = services.webDir !== null && existsSync(join(services.webDir, 'index.html'));
  if (hasPage) {
    // The page is built with its big files compressed beside them.
    await app.register(staticFiles, {
      root: services.webDir!,
      wildcard: true,
      preCompressed: true,
    });
  }
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?')[0]!;
    const isPage =
      request.method === 'GET' && !path.startsWith('/api/') && !path.startsWith('/agent/');
    // The page has paths of its own; a file that is missing must not be answered with the page.
    if (isPage && hasPage && !/\.[a-z0-9]+$/i.test(path)) {
      return reply.header('cache-control', 'no-cache').sendFile('index.html');
    }
    return reply
      .status(404)
      .send(toApiError(undError('UND_NOT_FOUND', { kind: 'path', id: path.slice(0, 200) })));
  });
}
