/**
 * The log of the process: JSON lines. No body, header, token, key or code is ever handed to it; what it redacts besides is for the
 * day on which somebody forgets that.
 */
import { pino, type Logger } from 'pino';
import { isRejected, isUnavailable } from '@keyguard/core/errors';
import type { LogLevel } from './config.ts';

const SECRET_NAMES = ['authorization', 'cookie', 'password', 'passphrase', 'token', 'apiKey', 'api_key', 'code', 'value', 'secret', 'url'];

export function createLog(level: LogLevel): Logger {
  return pino({
    level,
    // Neither the process id nor the host: whoever gathers the lines knows them.
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    redact: { paths: SECRET_NAMES.flatMap((name) => [name, `*.${name}`]), censor: '[redacted]' },
  });
}

const SQLSTATE = /^[0-9A-Z]{5}$/;
const MAX_MESSAGE = 300;

/** An error as it may be logged: what it is and where it was, and its words only where they quote nobody's data. */
export function describeError(error: unknown, depth: number = 0): object {
  if (!(error instanceof Error)) return { name: typeof error };
  const { code, seam } = error as { code?: unknown; seam?: unknown };
  // A driver's message quotes rows, and a parser's quotes what it could not parse.
  const quotes = error instanceof SyntaxError || (typeof code === 'string' && SQLSTATE.test(code) && !isUnavailable(error) && !isRejected(error));
  return {
    name: error.name,
    ...(typeof code === 'string' && { errorCode: code }),
    ...(typeof seam === 'string' && { seam }),
    ...(!quotes && { message: error.message.slice(0, MAX_MESSAGE) }),
    at: (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at ')).slice(0, 8).map((line) => line.trim()),
    ...(error.cause !== undefined && depth < 3 && { cause: describeError(error.cause, depth + 1) }),
  };
}
