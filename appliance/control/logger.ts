/** What services log with: fastify's logger (pino), or anything alike. */
export interface Logger {
  info(fields: object, text: string): void;
  warn(fields: object, text: string): void;
  error(fields: object, text: string): void;
}

export const silentLogger: Logger = { info() {}, warn() {}, error() {} };
