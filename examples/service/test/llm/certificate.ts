/** A certificate for a test's own TLS server, which vouches for itself: made here, because Node makes none. */
import { generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto';

const ECDSA_WITH_SHA256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME = [0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME = [0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS = [0x55, 0x1d, 0x13];

function der(tag: number, ...parts: readonly (Uint8Array | readonly number[])[]): Buffer {
  const content = Buffer.concat(parts.map((part) => Uint8Array.from(part)));
  const { length } = content;
  const size = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return Buffer.concat([Uint8Array.from([tag, ...size]), content]);
}
const sequence = (...parts: readonly Uint8Array[]): Buffer => der(0x30, ...parts);
const utcTime = (at: Date): Buffer => der(0x17, Buffer.from(`${at.toISOString().replaceAll(/[-:T]/g, '').slice(2, 14)}Z`));

export interface Certificate {
  readonly cert: string;
  readonly key: KeyObject;
}

/** For that host name, from an hour ago to an hour from now. */
export function certificateFor(name: string): Certificate {
  const { publicKey, privateKey: key } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const algorithm = sequence(der(0x06, ECDSA_WITH_SHA256));
  const issuer = sequence(der(0x31, sequence(der(0x06, COMMON_NAME), der(0x0c, Buffer.from(name)))));
  const [from, until] = [-1, 1].map((hours) => utcTime(new Date(Date.now() + hours * 3_600_000))) as [Buffer, Buffer];
  const altNames = sequence(der(0x82, Buffer.from(name)));
  const extensions = sequence(sequence(der(0x06, SUBJECT_ALT_NAME), der(0x04, altNames)), sequence(der(0x06, BASIC_CONSTRAINTS), der(0x01, [0xff]), der(0x04, sequence(der(0x01, [0xff])))));
  const serial = der(0x02, [1, ...randomBytes(8)]);
  const unsigned = sequence(der(0xa0, der(0x02, [2])), serial, algorithm, issuer, sequence(from, until), issuer, publicKey.export({ type: 'spki', format: 'der' }), der(0xa3, extensions));
  const signed = sequence(unsigned, algorithm, der(0x03, [0], sign('sha256', unsigned, key)));
  return { cert: `-----BEGIN CERTIFICATE-----\n${signed.toString('base64').replaceAll(/.{64}/g, '$&\n')}\n-----END CERTIFICATE-----\n`, key };
}
