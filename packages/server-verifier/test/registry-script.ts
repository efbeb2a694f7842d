/** A registry and a feed whose every answer a test gives by hand, when it wants to. */
import type { ChangedDevices, Device, DeviceChanges, DeviceRegistry } from '@keyguard/core/seams';

export interface Question<T> {
  answer(value: T): void;
  fail(error?: unknown): void;
}

export interface Script<T> {
  /** What was asked and is not answered yet, oldest first. */
  readonly open: Question<T>[];
  readonly count: () => number;
  readonly ask: () => Promise<T>;
}

export function script<T>(): Script<T> {
  const open: Question<T>[] = [];
  let count = 0;
  return {
    open,
    count: () => count,
    ask: () =>
      new Promise<T>((resolve, reject) => {
        count += 1;
        const question: Question<T> = {
          answer: (value) => (drop(question), resolve(value)),
          fail: (error = new Error('scripted')) => (drop(question), reject(error)),
        };
        open.push(question);
      }),
  };
  function drop(question: Question<T>): void {
    open.splice(open.indexOf(question), 1);
  }
}

export interface ScriptedRegistry extends DeviceRegistry {
  readonly asked: Script<Device | null>;
}

export function scriptedRegistry(): ScriptedRegistry {
  const asked = script<Device | null>();
  return { asked, findByKeyId: asked.ask, enroll: () => ({ outcome: 'rejected' }), rotate: () => ({ outcome: 'rejected' }) };
}

export interface ScriptedChanges extends DeviceChanges {
  readonly asked: Script<ChangedDevices>;
  readonly cursors: (string | null)[];
  hint(): void;
}

export function scriptedChanges(): ScriptedChanges {
  const asked = script<ChangedDevices>();
  const cursors: (string | null)[] = [];
  const hints = new Set<() => void>();
  return {
    asked,
    cursors,
    since(cursor) {
      cursors.push(cursor);
      return asked.ask();
    },
    onHint(hint) {
      hints.add(hint);
      return () => void hints.delete(hint);
    },
    hint() {
      for (const hint of hints) hint();
    },
  };
}

export function device(keyId: string, members: Partial<Device> = {}): Device {
  return {
    deviceId: `device of ${keyId}`,
    ownerId: 'owner',
    projectId: 'project',
    keyId,
    publicKey: { crv: 'P-256', kty: 'EC', x: 'x', y: 'y' },
    keyState: 'current',
    keyRetiresAtMs: null,
    status: 'active',
    label: null,
    requestsPerMinute: null,
    ipAllowlist: null,
    allowedModels: null,
    ...members,
  };
}
