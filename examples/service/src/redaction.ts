/**
 * What must not be shown, taken out of texts and errors: for the log, and for what a terminal is told. Nothing is imported here that takes
 * time to load: the start needs it before it has loaded anything.
 */
import { isRejected, isUnavailable } from '@keyguard/core/errors';

export const REDACTED = '[redacted]';

/** Forms that a secret has by itself, wherever it stands. */
const SECRET_FORMS: readonly (readonly [RegExp, string])[] = [
  [/\b(Bearer|Basic) [A-Za-z0-9._~+/=%-]{8,}/gi, `$1 ${REDACTED}`],
  [/\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+/g, REDACTED],
  [/\bsk-[A-Za-z0-9_-]{12,}/g, REDACTED],
  [/\bAIza[A-Za-z0-9_-]{30,}/g, REDACTED],
  // Our own: links that are handed out, invitations, tokens for a new password, and tokens of service accounts.
  [/\bkg(?:[ilpr]|sa)_[A-Za-z0-9_-]{20,}/g, REDACTED],
  [/(:\/\/)[^\s"'/@\\]{1,512}@/g, `$1${REDACTED}@`],
];

/** `text` without what has the form of a secret. */
export function scrub(text: string): string {
  let scrubbed = text;
  for (const [form, put] of SECRET_FORMS) scrubbed = scrubbed.replace(form, put);
  return scrubbed;
}

// What is looked at beyond the cut: longer than any secret, and bounded whatever is thrown.
const BEYOND = 2000;

/** The beginning of `text`, scrubbed first: of a secret across the cut the beginning would have no form by which to tell it. */
export function cut(text: string, length: number, sign = ''): string {
  const scrubbed = scrub(text.slice(0, length + BEYOND));
  return text.length > length ? `${scrubbed.slice(0, length)}${sign}` : scrubbed;
}

// What is as short as this stands in every second line.
const MIN_SECRET_CHARACTERS = 6;

/** Of a secret across the place where a text was cut, there is the beginning alone: at the end, or before the sign or the quotation mark. */
function withoutBeginning(text: string, secret: string): string {
  if (!text.includes(secret.slice(0, MIN_SECRET_CHARACTERS))) return text;
  let left = text;
  for (let length = secret.length - 1; length >= MIN_SECRET_CHARACTERS; length -= 1) {
    const beginning = secret.slice(0, length);
    for (const end of ['…', '"']) left = left.replaceAll(`${beginning}${end}`, `${REDACTED}${end}`);
    if (left.endsWith(beginning)) left = `${left.slice(0, -length)}${REDACTED}`;
  }
  return left;
}

/** Takes `secrets` out of a text, in which they stand as `written` writes them. */
export function knownSecrets(secrets: readonly string[], written: (secret: string) => string = (secret) => secret): (text: string) => string {
  const known = secrets.filter((secret) => secret.length >= MIN_SECRET_CHARACTERS).map(written);
  return (text) => known.reduce((left, secret) => withoutBeginning(left.replaceAll(secret, REDACTED), secret), text);
}

const SQLSTATE = /^[0-9A-Z]{5}$/;
const MAX_MESSAGE = 300;

/** Whether the message of an error holds what was worked on: a driver's quotes rows, and a parser's quotes what it could not parse. */
export function quotesData(error: Error): boolean {
  const { code } = error as { code?: unknown };
  return error instanceof SyntaxError || (typeof code === 'string' && SQLSTATE.test(code) && !isUnavailable(error) && !isRejected(error));
}

/** The words of somebody else's error, as they may be shown to whoever runs the program. */
export function wordsOf(error: Error): string {
  const { code } = error as { code?: unknown };
  // Made by the stores, who have left out what the driver quoted.
  const isQuiet = typeof code === 'string' && error.message.startsWith(`SQLSTATE ${code}`);
  if (isQuiet || !quotesData(error)) return cut(error.message, MAX_MESSAGE, '…');
  return typeof code === 'string' ? `the database answered with SQLSTATE ${code}` : 'something could not be read';
}

/** An error as it may be logged: what it is and where it was, and its words only where they quote nobody's data. */
export function describeError(error: unknown, depth: number = 0): object {
  if (!(error instanceof Error)) return { name: typeof error };
  const { code, seam } = error as { code?: unknown; seam?: unknown };
  return {
    name: error.name,
    ...(typeof code === 'string' && { errorCode: code }),
    ...(typeof seam === 'string' && { seam }),
    ...(!quotesData(error) && { message: cut(error.message, MAX_MESSAGE) }),
    at: (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at ')).slice(0, 8).map((line) => line.trim()),
    ...(error.cause !== undefined && depth < 3 && { cause: describeError(error.cause, depth + 1) }),
  };
}
