import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import {
  COVERED_HEADERS,
  isAuthority,
  isFieldValue,
  isKeyId,
  isNonce,
  isPath,
  isTimestamp,
  isUnsupportedHeader,
  MAX_TARGET_BYTES,
  signatureBase,
  splitTarget,
  type SignatureTag,
  type SignedParts,
} from '@keyguard/core/canonical';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };

describe('the signature base', () => {
  it.each(golden.cases)('is byte-exact for $name', (vector) => {
    const { 'content-type': contentType, ...covered } = vector.headers as Record<string, string>;
    const parts: SignedParts = {
      method: vector.method,
      authority: vector.authority,
      path: vector.path,
      query: vector.query,
      bodySha256: vector.expected.bodySha256,
      contentType: contentType ?? null,
      coveredHeaders: Object.entries(covered),
      timestamp: String(vector.created),
      keyId: vector.keyId,
      nonce: vector.nonce,
    };
    expect(signatureBase(parts, vector.tag as SignatureTag)).toBe(vector.expected.signatureBase);
    expect(vector.expected.rfc9421['Signature-Input']).toBe(
      `keyguard=${vector.expected.signatureBase.split('"@signature-params": ')[1]}`,
    );
  });

  it('is injective: different parts never give one base', () => {
    const value = fc.stringMatching(/^[!-~]([ -~]{0,20}[!-~])?$/);
    const parts: fc.Arbitrary<SignedParts> = fc.record({
      method: fc.constantFrom('GET', 'POST', 'PATCH'),
      authority: fc.constantFrom('a.example', 'b.example:8080'),
      path: fc.constantFrom('/', '/a', '/a/b', '/a;b'),
      query: fc.stringMatching(/^[!"$-~]{0,12}$/),
      bodySha256: fc.constantFrom('A', 'B').map((letter) => `${letter.repeat(42)}A=`),
      contentType: fc.option(value),
      coveredHeaders: fc
        .subarray([...COVERED_HEADERS])
        .chain((names) => fc.tuple(...names.map((name) => value.map((text): [string, string] => [name, text])))),
      timestamp: fc.constantFrom('1735689600', '1735689601'),
      keyId: fc.constant(golden.keyId),
      nonce: fc.constantFrom('AAECAwQFBgcICQoLDA0ODw', 'EBESExQVFhcYGRobHB0eHw'),
    });
    fc.assert(
      fc.property(parts, parts, (a, b) => {
        const same = JSON.stringify(a) === JSON.stringify(b);
        expect(signatureBase(a, 'keyguard-v1') === signatureBase(b, 'keyguard-v1')).toBe(same);
        expect(signatureBase(a, 'keyguard-v1')).not.toBe(signatureBase(a, 'keyguard-enroll-v1'));
      }),
      { numRuns: 3000 },
    );
  });
});

describe('the grammar', () => {
  const paths: [string, boolean][] = [
    ['/', true],
    ['/v1/models/gpt-4o:stream', true],
    ["/a~!$&'()*+,;=:@-._", true],
    ['/%C3%A9/%20', true],
    ['/a/', true],
    ['/...', true],
    ['/.well-known/x', true],
    ['/a.', true],
    ['', false],
    ['a', false],
    ['*', false],
    ['http://evil/x', false],
    ['//evil/x', false],
    ['/a//b', false],
    ['/a//', false],
    ['/.', false],
    ['/..', false],
    ['/a/../b', false],
    ['/a/..;x/b', false],
    ['/a/.;x', false],
    ['/a/./b', false],
    ['/a\\b', false],
    ['/a b', false],
    ['/a#b', false],
    ['/a[b]', false],
    ['/a|b^', false],
    ['/é', false],
    ['/%2e%2e/', false],
    ['/%2E', false],
    ['/%2f', false],
    ['/%5c', false],
    ['/%5C', false],
    ['/%25', false],
    ['/%00', false],
    ['/%1f', false],
    ['/%7f', false],
    ['/%7F', false],
    ['/%', false],
    ['/%2', false],
    ['/%zz', false],
    ['/\n', false],
    ['/a\n', false],
  ];
  it.each(paths)('path %j: %j', (path, valid) => {
    expect(isPath(path)).toBe(valid);
  });

  it('splits at the first question mark, and absent equals empty', () => {
    expect(splitTarget('/a?b?c=%2F..//')).toEqual({ path: '/a', query: 'b?c=%2F..//' });
    expect(splitTarget('/a?')).toEqual({ path: '/a', query: '' });
    expect(splitTarget('/a')).toEqual({ path: '/a', query: '' });
    expect(splitTarget('/a?b#c')).toBeNull();
    expect(splitTarget('/a?b c')).toBeNull();
    expect(splitTarget(`/${'a'.repeat(MAX_TARGET_BYTES - 1)}`)).not.toBeNull();
    expect(splitTarget(`/${'a'.repeat(MAX_TARGET_BYTES)}`)).toBeNull();
  });

  it('has one text for one value in every fixed field', () => {
    expect(isKeyId(golden.keyId)).toBe(true);
    expect(isKeyId(`${golden.keyId.slice(0, -1)}J`)).toBe(false);
    expect(isNonce('AAECAwQFBgcICQoLDA0ODw')).toBe(true);
    expect(isNonce('AAECAwQFBgcICQoLDA0ODx')).toBe(false);
    expect(isTimestamp('1735689600')).toBe(true);
    for (const odd of ['01735689600', '0735689600', '+173568960', ' 173568960', '1735689600\n', '1e9', '173568960', '17356896000', 'NaN', '']) {
      expect(isTimestamp(odd)).toBe(false);
    }
    expect(isAuthority('localhost:3000')).toBe(true);
    expect(isAuthority('[::1]:3000')).toBe(true);
    // A name of 255 characters and a port of five digits.
    expect(isAuthority(`${'a'.repeat(255)}:65535`)).toBe(true);
    expect(isAuthority(`${'a'.repeat(256)}:65535`)).toBe(false);
    for (const odd of ['Localhost', 'a b', 'a:', 'a:0', 'a/b', 'a@b', '', 'a:99999999']) expect(isAuthority(odd)).toBe(false);
    expect(isFieldValue('application/json; charset=utf-8')).toBe(true);
    for (const odd of ['', ' a', 'a ', 'a\nb', 'a\tb', 'é', 'a'.repeat(1025)]) expect(isFieldValue(odd)).toBe(false);
  });

  it('refuses what could change a call without being signed, and only that', () => {
    for (const name of ['anthropic-foo', 'openai-debug', 'x-goog-user-project', 'x-keyguard-foo']) expect(isUnsupportedHeader(name)).toBe(true);
    for (const name of [...COVERED_HEADERS, 'x-goog-api-key', 'x-goog-api-client', 'anthropic-dangerous-direct-browser-access', 'x-keyguard-nonce', 'x-stainless-lang', 'authorization']) {
      expect(isUnsupportedHeader(name)).toBe(false);
    }
  });

  it('is linear: a target a thousand times longer costs at most some thousand times more', () => {
    const time = (length: number): number => {
      const target = `/${'%C3/.a;'.repeat(length / 7)}`;
      const started = performance.now();
      for (let i = 0; i < 20; i += 1) isPath(target);
      return performance.now() - started;
    };
    time(7 * 1024);
    const small = Math.max(time(7 * 1024), 0.01);
    expect(time(7 * 1024 * 100) / small).toBeLessThan(1000);
  });
});
