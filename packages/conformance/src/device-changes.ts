/**
 * What every {@link DeviceChanges} must keep: no acknowledged change is left out, whatever happens at the same time, and what is named
 * can be read; also while what it is built on fails, hangs or is full.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { ChangedDevices, DeviceChanges, DeviceRegistry, MaybePromise } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { ending, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending, type Faults } from './faults.ts';

/** A feed of changes to be judged, with what the suite needs beside it. */
export interface DeviceChangesSubject {
  readonly changes: DeviceChanges;
  /** The same, as another process asks. */
  readonly peer: DeviceChanges;
  readonly registry: DeviceRegistry;
  /** Makes an active device; resolves when that is acknowledged. */
  enroll(): Promise<{ readonly deviceId: string; readonly keyId: string }>;
  /** Revokes it in a way that takes a moment, and other devices at the same time; resolves when that is acknowledged. */
  revoke(deviceId: string): Promise<void>;
  /** Every other way in which what a registry tells of a device may change, by name. */
  readonly moves: Readonly<Record<string, (deviceId: string) => Promise<void>>>;
  /** Of {@link changes} and {@link peer}, and of nothing else: what changes devices goes on. */
  readonly faults?: Faults;
  /** Takes away what it is built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

const RACING = 100;

/** There is none in memory alone: whoever keeps devices in this process sees their changes at once. */
export function deviceChangesConformance(title: string, open: () => MaybePromise<DeviceChangesSubject>): void {
  describe(`${title} keeps the contract of DeviceChanges`, { timeout: 60_000 }, () => {
    const it = casesOf('DeviceChanges', title);
    let subject: DeviceChangesSubject;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    const names = ({ deviceIds }: ChangedDevices, deviceId: string): boolean => deviceIds === 'reset' || deviceIds.includes(deviceId);
    const start = async (changes: DeviceChanges = subject.changes): Promise<string> => (await changes.since(null)).cursor;

    it.contract('begins with a reset, and then has nothing to say where nothing happens', async () => {
      const { deviceId } = await subject.enroll();
      const first = await subject.changes.since(null);
      expect(first.deviceIds).toBe('reset');
      let { cursor } = first;
      for (let i = 0; i < 3; i += 1) {
        const next = await subject.changes.since(cursor);
        expect(names(next, deviceId)).toBe(false);
        cursor = next.cursor;
      }
    });

    it.contract('names a device that is new', async () => {
      const cursor = await start();
      const { deviceId } = await subject.enroll();
      expect(names(await subject.changes.since(cursor), deviceId)).toBe(true);
    });

    it.contract('names a device that changed in any way, to every process that asks', async () => {
      for (const [name, move] of Object.entries({ ...subject.moves, revoke: subject.revoke })) {
        const { deviceId } = await subject.enroll();
        const [cursor, peerCursor] = [await start(), await start(subject.peer)];
        await move(deviceId);
        expect({ name, named: names(await subject.changes.since(cursor), deviceId) }).toEqual({ name, named: true });
        expect({ name, named: names(await subject.peer.since(peerCursor), deviceId) }).toEqual({ name, named: true });
      }
    });

    it.contract('goes on from any cursor that it gave, also one that was used before', async () => {
      const cursor = await start();
      const one = await subject.enroll();
      const next = await subject.changes.since(cursor);
      const two = await subject.enroll();
      expect(names(await subject.changes.since(next.cursor), two.deviceId)).toBe(true);
      const again = await subject.changes.since(cursor);
      expect([one, two].every(({ deviceId }) => names(again, deviceId))).toBe(true);
    });

    it.races(`leaves out none of ${RACING} changes that race with each other and with the questions, and names none that cannot be read yet`, async () => {
      const devices = await Promise.all(Array.from({ length: RACING }, () => subject.enroll()));
      let cursor = await start();
      const acknowledged = new Set<string>();
      const named = new Set<string>();
      const tooEarly: string[] = [];
      let isDone = false;
      const work = async (): Promise<void> => {
        await Promise.all(
          devices.map(async ({ deviceId }, i) => {
            await new Promise((resolve) => setTimeout(resolve, (i * 7) % 50));
            await subject.revoke(deviceId);
            acknowledged.add(deviceId);
          }),
        );
        isDone = true;
      };
      const poll = async (): Promise<void> => {
        for (let isLast = false; !isLast; ) {
          // A store in this process may answer without a turn of the event loop, and nothing else would ever happen.
          await new Promise((resolve) => setTimeout(resolve, 0));
          isLast = isDone;
          const owed = [...acknowledged];
          const { deviceIds, cursor: next } = await subject.changes.since(cursor);
          cursor = next;
          const told = deviceIds === 'reset' ? devices.map(({ deviceId }) => deviceId) : deviceIds;
          for (const deviceId of told) named.add(deviceId);
          for (const { deviceId, keyId } of deviceIds === 'reset' ? [] : devices) {
            if (!deviceIds.includes(deviceId)) continue;
            if ((await subject.registry.findByKeyId(keyId))?.status !== 'revoked') tooEarly.push(deviceId);
          }
          expect(owed.filter((deviceId) => !named.has(deviceId))).toEqual([]);
        }
      };
      await Promise.all([work(), poll()]);
      expect(named.size).toBeGreaterThanOrEqual(RACING);
      expect(tooEarly).toEqual([]);
    });

    it.contract('answers a cursor that it never gave with a reset', async () => {
      for (const cursor of ['', '0', 'x', '9'.repeat(400), 'null', "' OR true --"]) {
        expect((await subject.changes.since(cursor)).deviceIds, cursor).toBe('reset');
      }
    });

    /** Asks once, and answers with the cursor to go on from: the same one where there was no answer. */
    async function asked(cursor: string, named: Set<string>, ends: Ending<ChangedDevices>[], devices: readonly { readonly deviceId: string }[]): Promise<string> {
      const end = await ending(() => subject.changes.since(cursor));
      ends.push(end);
      if ('error' in end) return cursor;
      for (const { deviceId } of devices) if (names(end.value, deviceId)) named.add(deviceId);
      return end.value.cursor;
    }

    it.failing('leaves out no change while every fifth call of the substrate fails, before or after it has acted', async () => {
      const faults = faultsOf(subject);
      const devices = await Promise.all(Array.from({ length: 40 }, () => subject.enroll()));
      let cursor = await start();
      const named = new Set<string>();
      const ends: Ending<ChangedDevices>[] = [];
      const draw = failureDraw(11);
      await faults.fail(FAILING_SHARE, draw.random);
      for (const { deviceId } of devices) {
        await subject.revoke(deviceId);
        cursor = await asked(cursor, named, ends, devices);
      }
      await faults.calm();
      for (const error of errorsOf(ends)) expect(isUnavailable(error), String(error)).toBe(true);
      expect(draw.hits()).toBeGreaterThan(0);
      expect(valuesOf(ends).length).toBeGreaterThan(0);
      await asked(cursor, named, ends, devices);
      expect(devices.filter(({ deviceId }) => !named.has(deviceId))).toEqual([]);
    });

    it.hanging('says nothing while the substrate hangs, and leaves out nothing once it goes on', async () => {
      const { deviceId } = await subject.enroll();
      const cursor = await start();
      await subject.revoke(deviceId);
      const ends = await endingsOverHang(
        faultsOf(subject),
        seeded(12),
        undefined,
        Array.from({ length: 10 }, (_, i) => async () => (i % 2 === 0 ? subject.changes : subject.peer).since(cursor)),
      );
      expect(valuesOf(ends).length).toBeGreaterThan(0);
      for (const answer of valuesOf(ends)) expect(names(answer, deviceId)).toBe(true);
      expect(names(await subject.changes.since(cursor), deviceId)).toBe(true);
    });

    it.full('needs no room to be asked', async () => {
      const { deviceId } = await subject.enroll();
      const cursor = await start();
      await subject.revoke(deviceId);
      await faultsOf(subject).fill();
      const answer = await subject.changes.since(cursor);
      await faultsOf(subject).calm();
      expect(names(answer, deviceId)).toBe(true);
    });

    it.failing('throws when what it is built on is gone', async () => {
      const cursor = await start();
      if (subject.break === undefined) await faultsOf(subject).fail(1, () => 0);
      else await subject.break();
      const ask = async (): Promise<unknown> => subject.changes.since(cursor);
      expect(isUnavailable(await ask().catch((thrown: unknown) => thrown))).toBe(true);
    });
  });
}
