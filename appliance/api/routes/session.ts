import Type, { type Static } from 'typebox';
import type { Router } from '../app.ts';
import { LoginRequest, NewUser, PasswordChange, User } from '../schema.ts';
import type { Services } from '../services.ts';

const COOKIE = 'und_session';
const COOKIE_OPTIONS = { path: '/', httpOnly: true, sameSite: 'strict', secure: true } as const;

export function registerSessionRoutes(route: Router, { auth }: Services): void {
  route({
    method: 'POST',
    url: '/api/login',
    access: 'public',
    summary: 'Log in; the answer sets the session cookie',
    act: 'login',
    object: (request) =>
      String((request.body as Partial<Static<typeof LoginRequest>>)?.username ?? ''),
    schema: { body: LoginRequest, response: { 200: User } },
    handler: async (request, reply) => {
      const { username, password } = request.body as Static<typeof LoginRequest>;
      const { user, token, maxAgeSeconds } = await auth.login(username, password, request.ip);
      reply.setCookie(COOKIE, token, { ...COOKIE_OPTIONS, maxAge: maxAgeSeconds });
      return user;
    },
  });

  route({
    method: 'POST',
    url: '/api/logout',
    access: 'public',
    summary: 'Log out',
    act: 'logout',
    schema: { response: { 204: Type.Null() } },
    handler: async (request, reply) => {
      if (request.session) auth.logout(request.session);
      return reply.clearCookie(COOKIE, COOKIE_OPTIONS).status(204).send();
    },
  });

  route({
    method: 'GET',
    url: '/api/session',
    access: 'first-login',
    summary: 'Who is logged in',
    act: null,
    schema: { response: { 200: User } },
    handler: (request) => request.session!.user,
  });

  route({
    method: 'POST',
    url: '/api/session/password',
    access: 'first-login',
    summary: 'Change the own password; ends all other sessions of the user',
    act: 'password.change',
    object: (request) => request.session!.user.username,
    schema: { body: PasswordChange, response: { 200: User } },
    handler: (request) => {
      const { current, next } = request.body as Static<typeof PasswordChange>;
      return auth.changePassword(request.session!, current, next, request.ip);
    },
  });

  route({
    method: 'GET',
    url: '/api/users',
    access: 'admin',
    summary: 'All users',
    act: null,
    schema: { response: { 200: Type.Array(User) } },
    handler: () => auth.listUsers(),
  });

  route({
    method: 'POST',
    url: '/api/users',
    access: 'admin',
    summary: 'Add a user, who has to change the password at the first login',
    act: 'user.add',
    object: (request) => {
      const body = request.body as Static<typeof NewUser>;
      return `${body.username} (${body.role})`;
    },
    schema: { body: NewUser, response: { 200: User } },
    handler: (request) => {
      const { username, password, role } = request.body as Static<typeof NewUser>;
      return auth.addUser(username, password, role);
    },
  });

  route({
    method: 'DELETE',
    url: '/api/users/:username',
    access: 'admin',
    summary: 'Remove a user and end the sessions',
    act: 'user.remove',
    schema: {
      params: Type.Object({ username: Type.String({ maxLength: 64 }) }),
      response: { 204: Type.Null() },
    },
    handler: async (request, reply) => {
      auth.removeUser((request.params as { username: string }).username);
      return reply.status(204).send();
    },
  });
}
