/** What a secret can be, and what its value must then look like: checked lightly, to catch what was pasted into the wrong field. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { HttpProblem } from '../http/problems.ts';

export const SECRET_TYPES = ['generic', 'password', 'api_key', 'token', 'certificate', 'private_key', 'ssh_key', 'database_url', 'env'] as const;
export type SecretType = (typeof SECRET_TYPES)[number];

/** The JSON around it has 64 KiB; a value with many line breaks has room for less. */
export const MAX_VALUE_BYTES = 48 * 1024;

const PEM_KEY = /^\s*-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----\r?\n[\s\S]+-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----\s*$/;
const DATABASE_URL = /^(?:postgres(?:ql)?|mysql|mariadb|mongodb(?:\+srv)?|rediss?|valkeys?|sqlserver|amqps?|clickhouse|cockroachdb):$/;

function invalid(message: string): HttpProblem {
  return new HttpProblem('invalid_request', `value: ${message}`);
}

/**
 * What is known of a value of this type beside itself.
 * @throws HttpProblem `invalid_request` for a value that cannot be one; no part of it is in the message
 */
export function examine(type: SecretType, value: string): { readonly expiresAtMs: number | null } {
  if (value === '') throw invalid('it is empty.');
  if (Buffer.byteLength(value) > MAX_VALUE_BYTES) throw invalid(`it has more than ${MAX_VALUE_BYTES} bytes.`);
  switch (type) {
    case 'certificate':
      return { expiresAtMs: expiryOf(value) };
    case 'private_key':
      if (!isPrivateKey(value)) throw invalid('it is no private key in PEM.');
      break;
    case 'ssh_key':
      if (!PEM_KEY.test(value)) throw invalid('it is no private SSH key: those begin with -----BEGIN … PRIVATE KEY-----.');
      break;
    case 'database_url':
      if (!URL.canParse(value) || !DATABASE_URL.test(new URL(value).protocol)) throw invalid('it is no URL of a database.');
      break;
    default:
  }
  return { expiresAtMs: null };
}

function isPrivateKey(value: string): boolean {
  if (!PEM_KEY.test(value)) return false;
  // An encrypted one says so, and opens with its passphrase alone.
  if (value.includes('ENCRYPTED')) return true;
  try {
    createPrivateKey(value);
    return true;
  } catch {
    return false;
  }
}

/** Of the first certificate of a chain, which is whose chain it is. */
function expiryOf(value: string): number {
  try {
    return Math.floor(new X509Certificate(value).validToDate.getTime());
  } catch {
    throw invalid('it is no X.509 certificate in PEM.');
  }
}
