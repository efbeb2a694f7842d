import type { Suite } from './results.ts';
export const vault: Suite = async () => [];
