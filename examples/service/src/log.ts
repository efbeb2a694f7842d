/**
 * The log of the process: JSON lines. No body, header, token, key or code is ever handed to it; what it redacts besides is for the
 * day on which somebody forgets that.
 */
import { pino, type Logger } from 'pino';
import type { LogLevel } from './config.ts';
import { cut, describeError, knownSecrets, REDACTED, scrub } from './redaction.ts';

export { describeError } from './redaction.ts';

// Of members, at any depth, however they are written: apiKey, api_key, API-KEY.
const SECRET_NAMES: ReadonlySet<string> = new Set(
  [
    'authorization', 'proxyauthorization', 'cookie', 'setcookie', 'setauthtoken', 'password', 'currentpassword', 'newpassword', 'passphrase',
    'token', 'sessiontoken', 'accesstoken', 'refreshtoken', 'apikey', 'xapikey', 'xgoogapikey', 'xkeyguardsignature', 'xkeyguardtoken', 'code', 'setupcode',
    'backupcodes', 'value', 'secret', 'clientsecret', 'privatekey', 'privatejwk', 'key', 'dek', 'kek', 'otpauthurl', 'url', 'body', 'headers',
  ],
);
const BOUND_NAMES = ['authorization', 'cookie', 'password', 'passphrase', 'token', 'apiKey', 'api_key', 'code', 'value', 'secret', 'url'];
const MAX_DEPTH = 6;
const MAX_TEXT = 2000;

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

/** A log that shows no secret that it can tell for one. */
export function createLog(level: LogLevel, { secrets = [], destination }: LogOptions = {}): Logger {
  // As they stand in JSON.
  const withoutKnown = knownSecrets(secrets, (secret) => JSON.stringify(secret).slice(1, -1));
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
        return withoutKnown(scrub(line));
      },
    },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}

/** What was described already stays so. */
function describeLogged(value: unknown): unknown {
  return value instanceof Error ? describeError(value) : value;
}
