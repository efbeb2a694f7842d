/**
 * The log of the process: JSON lines. No body, header, token, key or code is ever handed to it; what it redacts besides is for the
 * day on which somebody forgets that.
 */
import { pino, type Logger } from 'pino';
import { isRejected, isUnavailable } from '@keyguard/core/errors';
import type { LogLevel } from './config.ts';

// Of members, at any depth, however they are written: apiKey, api_key, API-KEY.
const SECRET_NAMES: ReadonlySet<string> = new Set(
  [
    'authorization', 'proxyauthorization', 'cookie', 'setcookie', 'setauthtoken', 'password', 'currentpassword', 'newpassword', 'passphrase',
    'token', 'sessiontoken', 'accesstoken', 'refreshtoken', 'apikey', 'xapikey', 'xgoogapikey', 'xkeyguardsignature', 'xkeyguardtoken', 'code', 'setupcode',
    'backupcodes', 'value', 'secret', 'clientsecret', 'privatekey', 'privatejwk', 'key', 'dek', 'kek', 'otpauthurl', 'url', 'body', 'headers',
  ],
);
const BOUND_NAMES = ['authorization', 'cookie', 'password', 'passphrase', 'token', 'apiKey', 'api_key', 'code', 'value', 'secret', 'url'];
const REDACTED = '[redacted]';
const MAX_DEPTH = 6;
const MAX_TEXT = 2000;

/** Forms that a secret has by itself, wherever it stands. */
const SECRET_FORMS: readonly (readonly [RegExp, string])[] = [
  [/\b(Bearer|Basic) [A-Za-z0-9._~+/=%-]{8,}/gi, `$1 ${REDACTED}`],
  [/\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+/g, REDACTED],
  [/\bsk-[A-Za-z0-9_-]{12,}/g, REDACTED],
  [/\bAIza[A-Za-z0-9_-]{30,}/g, REDACTED],
  // Our own: links that are handed out, and tokens of service accounts.
  [/\bkg(?:[lp]|sa)_[A-Za-z0-9_-]{20,}/g, REDACTED],
  [/(:\/\/)[^\s"'/@\\]{1,512}@/g, `$1${REDACTED}@`],
];

function scrub(text: string): string {
  let scrubbed = text;
  for (const [form, put] of SECRET_FORMS) scrubbed = scrubbed.replace(form, put);
  return scrubbed;
}

// What is looked at beyond the cut: longer than any secret, and bounded whatever is thrown.
const BEYOND = 2000;

/** Scrubbed first: of a secret across the cut the beginning would have no form by which to tell it. */
function cut(text: string, length: number, sign = ''): string {
  const scrubbed = scrub(text.slice(0, length + BEYOND));
  return text.length > length ? `${scrubbed.slice(0, length)}${sign}` : scrubbed;
}

function shown(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return cut(value, MAX_TEXT, '…');
  if (typeof value !== 'object' || value === null) return typeof value === 'bigint' ? String(value) : value;
  if (value instanceof Error) return describeError(value);
  // Whatever bytes they are, nobody reads them here.
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return REDACTED;
  if (depth >= MAX_DEPTH) return '[too deep]';
  if (Array.isArray(value)) return value.map((item) => shown(item, depth + 1));
  return members(value, depth);
}

function members(value: object, depth: number): Record<string, unknown> {
  const redacted: Record<string, unknown> = {};
  for (const [name, item] of Object.entries(value)) {
    const isSecret = SECRET_NAMES.has(name.toLowerCase().replaceAll(/[^a-z0-9]/g, ''));
    redacted[name] = isSecret && item !== null && item !== undefined ? REDACTED : shown(item, depth + 1);
  }
  return redacted;
}

export interface LogOptions {
  /** Secrets that this process was started with: taken out of every line, whoever wrote them into it. */
  readonly secrets?: readonly string[];
  /** Where the lines go. Default: standard output. */
  readonly destination?: { write(line: string): void };
}

// What is as short as this stands in every second line.
const MIN_SECRET_CHARACTERS = 6;

/** A log that shows no secret that it can tell for one. */
export function createLog(level: LogLevel, { secrets = [], destination }: LogOptions = {}): Logger {
  // As they stand in JSON.
  const known = secrets.filter((secret) => secret.length >= MIN_SECRET_CHARACTERS).map((secret) => JSON.stringify(secret).slice(1, -1));
  const options = {
    level,
    // Neither the process id nor the host: whoever gathers the lines knows them.
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: {
      level: (label: string) => ({ level: label }),
      log: (line: object) => members(line, 0),
    },
    // What a child is bound to passes no formatter.
    redact: { paths: BOUND_NAMES.flatMap((name) => [name, `*.${name}`]), censor: REDACTED },
    // Of an error that is logged as one, pino would write message and stack as they are.
    serializers: { err: describeLogged, error: describeLogged },
    hooks: {
      streamWrite(line: string): string {
        let written = scrub(line);
        for (const secret of known) written = written.replaceAll(secret, REDACTED);
        return written;
      },
    },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}

/** What was described already stays so. */
function describeLogged(value: unknown): unknown {
  return value instanceof Error ? describeError(value) : value;
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
    ...(!quotes && { message: cut(error.message, MAX_MESSAGE) }),
    at: (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at ')).slice(0, 8).map((line) => line.trim()),
    ...(error.cause !== undefined && depth < 3 && { cause: describeError(error.cause, depth + 1) }),
  };
}
