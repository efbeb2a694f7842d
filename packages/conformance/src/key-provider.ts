/**
 * What every {@link KeyProvider} must keep: what it wrapped is unwrapped by whoever opens the same key, for the same context, and by
 * nobody else; also while what the key is kept in, or the service that keeps it, fails, hangs or is full.
 */
import { concat, utf8 } from '@keyguard/core/bytes';
import { hasCode, isUnavailable } from '@keyguard/core/errors';
import type { Bytes, KeyProvider, MaybePromise, WrappedKey } from '@keyguard/core/seams';
import { describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { ending, endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending, type Faults, type Substrate } from './faults.ts';

/** Opens one key, again and again: each answer is a provider of its own, as another process has one. */
export type OpenKeyProvider = () => MaybePromise<KeyProvider>;

/** A key provider to be judged, with what the suite needs beside it. */
export interface KeyProviderSubject {
  /** A new key each time, which may be made only when it is opened. */
  readonly place: () => MaybePromise<OpenKeyProvider>;
  /** Left out where the key is in memory. */
  readonly faults?: Faults;
  /** Within how many milliseconds a verb answers or throws, where that is promised. */
  readonly boundMs?: number;
  /** What a substrate that went wrong is told as. Default: an `UnavailableError`. */
  readonly isOutage?: (error: unknown) => boolean;
  /** Default `external`. */
  readonly substrate?: Exclude<Substrate, 'bounded'>;
}

const RACING = 100;
// A key from a passphrase is derived each time it is opened.
const OPENED = 5;
const CONTEXT: Bytes = utf8('conformance: the context');

/** Runs the suite against one implementation. Call it at the top of a test file. */
export function keyProviderConformance(title: string, subject: KeyProviderSubject): void {
  const { place, boundMs, isOutage = isUnavailable, substrate = 'external' } = subject;
  describe(`${title} keeps the contract of KeyProvider`, { timeout: 60_000 }, () => {
    const it = casesOf('KeyProvider', title);
    let serial = 0;

    /** A key of 32 bytes that was not there before. */
    function newDek(): Bytes {
      serial += 1;
      return Uint8Array.from({ length: 32 }, (_, i) => (serial * 31 + i * 7) % 256);
    }
    const opened = async (): Promise<KeyProvider> => (await place())();
    const refusal = async (work: () => Promise<unknown>): Promise<unknown> => {
      const end = await ending(work);
      return 'error' in end ? end.error : end.value;
    };

    async function expectRefused(provider: KeyProvider, wrapped: WrappedKey, context: Bytes = CONTEXT, what = ''): Promise<void> {
      expect(await refusal(() => provider.unwrap(wrapped, context)), what).toSatisfy((error) => hasCode(error, 'vault_open_failed'));
    }

    it.contract('gives back what it wrapped, to whoever opens the same key, in an array of its own', async () => {
      const open = await place();
      const provider = await open();
      const dek = newDek();
      const wrapped = await provider.wrap(dek, CONTEXT);
      for (const one of [provider, await open()]) {
        const first = await one.unwrap(wrapped, CONTEXT);
        expect(first).toEqual(dek);
        first.fill(0);
        expect(await one.unwrap(wrapped, CONTEXT)).toEqual(dek);
        expect((await one.wrap(dek, CONTEXT)).kekId).toBe(wrapped.kekId);
      }
    });

    it.contract('keeps and changes none of the arrays that are handed in', async () => {
      const provider = await opened();
      const dek = newDek();
      const [given, context] = [dek.slice(), CONTEXT.slice()];
      const wrapped = await provider.wrap(given, context);
      expect([given, context]).toEqual([dek, CONTEXT]);
      given.fill(0);
      context.fill(0);
      const before = wrapped.bytes.slice();
      expect(await provider.unwrap(wrapped, CONTEXT)).toEqual(dek);
      expect(wrapped.bytes).toEqual(before);
    });

    it.contract('shows nothing of what it wrapped, and never wraps it in the same bytes', async () => {
      const provider = await opened();
      const dek = newDek();
      const all = await Promise.all(Array.from({ length: 10 }, () => provider.wrap(dek, CONTEXT)));
      const texts = all.map(({ bytes }) => bytes.join());
      expect(new Set(texts).size).toBe(all.length);
      for (const text of texts) expect(text).not.toContain(dek.subarray(0, 8).join());
    });

    it.contract('refuses whatever was changed in bytes, context or key id', async () => {
      const provider = await opened();
      const wrapped = await provider.wrap(newDek(), CONTEXT);
      const { kekId, bytes } = wrapped;
      for (let at = 0; at < bytes.length; at += 1) {
        const changed = bytes.slice();
        changed[at]! ^= 1 << (at % 8);
        await expectRefused(provider, { kekId, bytes: changed }, CONTEXT, `byte ${at}`);
      }
      for (const length of [0, 1, bytes.length - 1]) await expectRefused(provider, { kekId, bytes: bytes.slice(0, length) });
      await expectRefused(provider, { kekId, bytes: concat(bytes, Uint8Array.of(0)) });
      for (const context of [new Uint8Array(), CONTEXT.slice(1), CONTEXT.slice(0, -1), concat(CONTEXT, Uint8Array.of(0)), utf8('Conformance: the context')]) {
        await expectRefused(provider, wrapped, context);
      }
      await expectRefused(provider, { kekId: `${kekId}x`, bytes });
      await expectRefused(provider, { kekId: '', bytes });
    });

    it.contract('refuses what another key wrapped, also under its own name, with the one answer that all refusals have', async () => {
      const [provider, other] = [await opened(), await opened()];
      const [own, foreign] = [await provider.wrap(newDek(), CONTEXT), await other.wrap(newDek(), CONTEXT)];
      const answers = await Promise.all(
        [
          () => provider.unwrap(foreign, CONTEXT),
          () => provider.unwrap({ ...foreign, kekId: own.kekId }, CONTEXT),
          () => provider.unwrap(own, new Uint8Array()),
          () => provider.unwrap({ ...own, bytes: own.bytes.slice(1) }, CONTEXT),
        ].map(refusal),
      );
      for (const error of answers) {
        expect(hasCode(error, 'vault_open_failed')).toBe(true);
        const { message, detail, cause } = error as Error & { detail?: unknown };
        expect({ message, detail, cause }).toEqual({ message: (answers[0] as Error).message, detail: undefined, cause: undefined });
      }
    });

    it.contract('wraps keys of 32 bytes and nothing else', async () => {
      const provider = await opened();
      for (const length of [0, 16, 31, 33, 64]) {
        expect(await refusal(() => provider.wrap(new Uint8Array(length), CONTEXT)), String(length)).toSatisfy((error) => hasCode(error, 'invalid_option'));
      }
    });

    it.races(`wraps and unwraps for ${RACING} callers at once, over ${OPENED} that opened the key at once`, async () => {
      const open = await place();
      const providers = await Promise.all(Array.from({ length: OPENED }, () => open()));
      const deks = Array.from({ length: RACING }, newDek);
      const wrapped = await Promise.all(deks.map((dek, i) => providers[i % OPENED]!.wrap(dek, utf8(`context ${i}`))));
      expect(new Set(wrapped.map(({ kekId }) => kekId)).size).toBe(1);
      expect(await Promise.all(wrapped.map((one, i) => providers[(i + 1) % OPENED]!.unwrap(one, utf8(`context ${i}`))))).toEqual(deks);
    });

    if (substrate === 'memory') return;

    interface Kept {
      readonly dek: Bytes;
      readonly wrapped: WrappedKey;
    }

    /** Opens the key and wraps with it. */
    const wraps = (open: OpenKeyProvider, count: number): (() => Promise<Kept>)[] =>
      Array.from({ length: count }, () => async () => {
        const dek = newDek();
        return { dek, wrapped: await (await open()).wrap(dek, CONTEXT) };
      });

    /** That whatever was wrapped is unwrapped by who opens the key now, and that nothing else went wrong than the substrate. */
    async function expectKept(open: OpenKeyProvider, ends: readonly Ending<Kept>[]): Promise<void> {
      for (const error of errorsOf(ends)) expect(isOutage(error), String(error)).toBe(true);
      const provider = await open();
      for (const { dek, wrapped } of valuesOf(ends)) expect(await provider.unwrap(wrapped, CONTEXT)).toEqual(dek);
      const dek = newDek();
      expect(await (await open()).unwrap(await provider.wrap(dek, CONTEXT), CONTEXT)).toEqual(dek);
    }

    it.failing('wraps under one key, while every fifth call of the substrate fails, before or after it has acted', async () => {
      const faults = faultsOf(subject);
      const draw = failureDraw(120);
      for (let round = 0; round < 4; round += 1) {
        const open = await place();
        await faults.fail(FAILING_SHARE, draw.random);
        const ends = await endings(wraps(open, 2 * OPENED));
        await faults.calm();
        await expectKept(open, ends);
      }
      expect(draw.hits()).toBeGreaterThan(0);
    });

    it.failing('never tells an outage as a value that cannot be opened', async () => {
      const faults = faultsOf(subject);
      const open = await place();
      const dek = newDek();
      const wrapped = await (await open()).wrap(dek, CONTEXT);
      await faults.fail(FAILING_SHARE, seeded(121));
      const ends = await endings(Array.from({ length: 2 * OPENED }, () => async () => (await open()).unwrap(wrapped, CONTEXT)));
      await faults.calm();
      for (const error of errorsOf(ends)) expect(isOutage(error), String(error)).toBe(true);
      for (const unwrapped of valuesOf(ends)) expect(unwrapped).toEqual(dek);
    });

    it.hanging('wraps nothing while the substrate hangs, and under one key once it goes on', async () => {
      const open = await place();
      await expectKept(open, await endingsOverHang(faultsOf(subject), seeded(122), boundMs, wraps(open, 2 * OPENED)));
    });

    it.full('opens the key that there is or throws while there is no room, and goes on when there is', async () => {
      const faults = faultsOf(subject);
      const known = await place();
      const before = await endings(wraps(known, 1));
      const open = await place();
      await faults.fill();
      const during = await endings(wraps(known, OPENED));
      const ends = await endings(wraps(open, OPENED));
      await faults.calm();
      await expectKept(known, [...before, ...during]);
      expect(valuesOf(before)).toHaveLength(1);
      await expectKept(open, ends);
    });
  });
}
