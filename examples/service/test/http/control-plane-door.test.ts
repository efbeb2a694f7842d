/** Who gets through the door of the control plane, by name and by address, also after the settings have changed. */
import type { Request, Response } from 'express';
import { describe, expect, it } from 'vitest';
import { controlPlaneDoor } from '../../src/http/control-plane-door.ts';

interface Coming {
  readonly hosts?: readonly string[];
  readonly nameOfHost?: string;
  readonly ip?: string | undefined;
}

function doorOf(allowlist: () => readonly string[]): (coming?: Coming) => string {
  const door = controlPlaneDoor({ authorities: ['guard.example.com', 'guard.example.com:8443'], allowlist });
  return ({ hosts = ['guard.example.com'], nameOfHost = 'Host', ip = '198.51.100.7' } = {}) => {
    let word = 'nothing';
    try {
      const request = { rawHeaders: hosts.flatMap((host) => [nameOfHost, host]), headers: { host: hosts[0] }, ip };
      door(request as unknown as Request, {} as Response, () => {
        word = 'through';
      });
    } catch (error) {
      word = (error as { code: string }).code;
    }
    return word;
  };
}

describe('the door of the control plane', () => {
  const everyone = doorOf(() => ['0.0.0.0/0', '::/0']);

  it('knows its names, whatever their case, with the port that belongs to them', () => {
    for (const host of ['guard.example.com', 'GUARD.example.com', 'guard.example.com:8443']) expect(everyone({ hosts: [host] }), host).toBe('through');
    for (const host of ['guard.example.com.', 'guard.example.com:80', 'evil.example.com', 'guard.example.com.evil.example', '']) expect(everyone({ hosts: [host] }), host).toBe('misdirected_request');
  });

  it('takes one Host and no other beside it, however it is written', () => {
    expect(everyone({ hosts: [] })).toBe('misdirected_request');
    for (const nameOfHost of ['Host', 'host', 'HOST']) {
      expect(everyone({ nameOfHost })).toBe('through');
      expect(everyone({ nameOfHost, hosts: ['guard.example.com', 'evil.example.com'] })).toBe('misdirected_request');
    }
  });

  it('lets in whom the list of now names, and nobody whose address is not known', () => {
    let list: readonly string[] = ['198.51.100.0/24'];
    const door = doorOf(() => list);
    expect([door(), door({ ip: '203.0.113.9' }), door({ ip: '' })]).toEqual(['through', 'address_not_allowed', 'address_not_allowed']);
    list = ['203.0.113.0/24'];
    expect([door(), door({ ip: '203.0.113.9' })]).toEqual(['address_not_allowed', 'through']);
    list = [];
    expect([door(), door({ ip: '203.0.113.9' })]).toEqual(['address_not_allowed', 'address_not_allowed']);
  });
});
