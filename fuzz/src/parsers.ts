/** All parsers of untrusted input, by the module that they belong to. A new one is added to the list of its module. */
import type { Parser } from './parser.ts';
import { AUDIT } from './parsers/audit.ts';
import { BYTES } from './parsers/bytes.ts';
import { CANONICAL } from './parsers/canonical.ts';
import { CHECKPOINT } from './parsers/checkpoint.ts';
import { CLIENT } from './parsers/client.ts';
import { ENROLLMENT } from './parsers/enrollment.ts';
import { EXPORT } from './parsers/export.ts';
import { FETCH } from './parsers/fetch.ts';
import { FINGERPRINT } from './parsers/fingerprint.ts';
import { GATEWAY_BODIES } from './parsers/gateway-bodies.ts';
import { GATEWAY_STREAMS } from './parsers/gateway-streams.ts';
import { HEADS } from './parsers/head.ts';
import { IP } from './parsers/ip.ts';
import { JSONS } from './parsers/json.ts';
import { KEYS } from './parsers/keys.ts';
import { MERKLE } from './parsers/merkle.ts';
import { RAW_BODY } from './parsers/raw-body.ts';
import { ROTATION } from './parsers/rotation.ts';
import { VAULT } from './parsers/vault.ts';

export const PARSERS: readonly Parser[] = [
  ...BYTES,
  ...CANONICAL,
  ...HEADS,
  ...KEYS,
  ...JSONS,
  ...VAULT,
  ...AUDIT,
  ...EXPORT,
  ...MERKLE,
  ...CHECKPOINT,
  ...ROTATION,
  ...FINGERPRINT,
  ...CLIENT,
  ...ENROLLMENT,
  ...IP,
  ...RAW_BODY,
  ...FETCH,
  ...GATEWAY_BODIES,
  ...GATEWAY_STREAMS,
];
