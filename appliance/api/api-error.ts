import type { FastifyError } from 'fastify';
import { asUndError, UndError, undError } from '../../protocol/errors.ts';
import type { ApiError } from './schema.ts';

/** A coded error as the API shows it. `field` is the path of the refused field, such as `diskIds.0`. */
export function toApiError(error: unknown, field?: string): ApiError {
  const coded = asUndError(error);
  const path = field ?? (typeof coded.params.field === 'string' ? coded.params.field : undefined);
  return {
    code: coded.code,
    message: coded.message,
    hint: coded.hint,
    ...(path === undefined ? {} : { field: path }),
  };
}

type ValidationIssue = {
  instancePath: string;
  keyword: string;
  message?: string;
  params?: Record<string, unknown>;
};

const pathOf = (issue: ValidationIssue): string => {
  const parts = issue.instancePath.split('/').filter(Boolean);
  const missing = issue.params?.missingProperty ?? issue.params?.additionalProperty;
  if (typeof missing === 'string') parts.push(missing);
  return parts.join('.') || 'the request';
};

/** Whatever ended a request, as a coded error with the HTTP status to answer. */
export function toHttpError(error: unknown): { status: number; error: UndError } {
  if (error instanceof UndError) return { status: error.httpStatus, error };
  const fastify = error as FastifyError;
  if (Array.isArray(fastify.validation)) {
    // Of a failed union the deepest issue names the field; the others only say that no branch fitted.
    const issues = fastify.validation as unknown as ValidationIssue[];
    const issue = issues.toSorted((a, b) => b.instancePath.length - a.instancePath.length)[0]!;
    const field = pathOf(issue);
    return {
      status: 400,
      error: undError('UND_REQUEST_INVALID', {
        reason: `${field} ${issue.message ?? 'is not valid'}`,
        field,
      }),
    };
  }
  if (typeof fastify.statusCode === 'number' && fastify.statusCode < 500) {
    return {
      status: fastify.statusCode,
      error: undError('UND_REQUEST_INVALID', { reason: fastify.message, field: 'the request' }),
    };
  }
  return { status: 500, error: asUndError(error) };
}
